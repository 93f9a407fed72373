//! `cargo xtask manifests` writes the files that are generated from the chart. The kustomize base is the chart's
//! output, so the two cannot differ.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::setup;
use crate::shell::{root, step};

/// The Kubernetes version that the base is rendered for. It selects the newest form of objects that clusters support.
const KUBERNETES: &str = "1.31";

const BASE_HEADER: &str = "\
# Made from deploy/helm/metaproxy by `cargo xtask manifests`; do not edit. Change it with patches of your own.
# METAPROXY_NAMESPACE_POLICY=required: see the chart's values.yaml for what else there is to choose.
";

/// Writes the files, or only compares them.
pub fn make(check: bool) -> Result<()> {
    let helm = setup::kubernetes_tools()?.join("helm");
    let tests = root().join("deploy/helm/tests");
    let mut files = vec![(root().join("deploy/kustomize/base/metaproxy.yaml"), base(&helm)?)];
    for values in yaml_files(&tests.join("values"))? {
        let version = kubernetes_of(&values)?;
        let name = values.file_name().context("a values file has no name")?;
        files.push((tests.join("golden").join(name), render(&helm, &values, &version)?));
    }
    let mut differing = Vec::new();
    for (path, text) in files {
        if fs::read_to_string(&path).ok().as_deref() == Some(&text) {
            continue;
        }
        if check {
            differing.push(path.display().to_string());
        } else {
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            step(&format!("wrote {}", path.display()));
        }
    }
    if !differing.is_empty() {
        bail!(
            "these files differ from the chart's output: {}; run `cargo xtask manifests` and review them",
            differing.join(", ")
        );
    }
    Ok(())
}

fn base(helm: &Path) -> Result<String> {
    let values = root().join("deploy/helm/tests/values/minimal.yaml");
    let text = render(helm, &values, KUBERNETES)?;
    let text = text.replace(
        "app.kubernetes.io/managed-by: Helm",
        "app.kubernetes.io/managed-by: kustomize",
    );
    Ok(format!("{BASE_HEADER}{text}"))
}

fn render(helm: &Path, values: &Path, version: &str) -> Result<String> {
    let output = Command::new(helm)
        .args([
            "template",
            "metaproxy",
            "--namespace",
            "kube-system",
            "--kube-version",
            version,
        ])
        .arg(root().join("deploy/helm/metaproxy"))
        .arg("--values")
        .arg(values)
        .output()
        .with_context(|| format!("cannot run {}", helm.display()))?;
    if !output.status.success() {
        bail!(
            "{}: {}",
            values.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Returns the version of Kubernetes that a set of values names.
fn kubernetes_of(values: &Path) -> Result<String> {
    let text = fs::read_to_string(values).with_context(|| format!("cannot read {}", values.display()))?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("# kube-version: "));
    Ok(version
        .with_context(|| format!("{}: no line `# kube-version: …`", values.display()))?
        .to_owned())
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    Ok(files)
}
