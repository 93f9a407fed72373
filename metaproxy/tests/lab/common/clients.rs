//! Real clients and their servers.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use metaproxy_lab::Lab;
use metaproxy_lab::pod::{Pod, command_in};

pub const MOTO: &str = "http://10.200.0.2:5000";

pub fn venv(program: &str) -> PathBuf {
    let venv = std::env::var_os("METAPROXY_TEST_VENV").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/venv"),
        PathBuf::from,
    );
    let path = venv.join("bin").join(program);
    assert!(
        path.exists(),
        "{} is missing: run `sudo cargo xtask setup`",
        path.display()
    );
    path
}

/// A server in AWS's network namespace. Dropping this value kills the process.
pub struct Server(pub Child);

impl Server {
    pub fn moto(lab: &Lab) -> Self {
        let mut command = command_in(&venv("moto_server"), None, lab.aws().file()).unwrap();
        command
            .args(["-H", "10.200.0.2", "-p", "5000"])
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let moto = Self(command.spawn().unwrap());
        let start = std::time::Instant::now();
        while lab
            .aws()
            .run(|| std::net::TcpStream::connect("10.200.0.2:5000"))
            .unwrap()
            .is_err()
        {
            assert!(start.elapsed().as_secs() < 60, "moto does not start");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        moto
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/clients")
        .join(name)
}

/// Creates moto's users and roles, and returns the node's keys.
pub fn fixtures(lab: &Lab) -> (String, String, String) {
    let mut command = command_in(&venv("python3"), None, lab.aws().file()).unwrap();
    json_of(command.arg(script("fixtures.py")).arg(MOTO).env_clear())
}

/// Runs a command and reads the JSON that it prints.
pub fn json_of<T: serde::de::DeserializeOwned>(command: &mut Command) -> T {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn in_pod(pod: &Pod, lab: &Lab, program: &str) -> Command {
    as_application(pod.command(venv(program)).unwrap(), lab)
}

/// Clears the command's environment except for region and endpoints.
pub fn as_application(mut command: Command, lab: &Lab) -> Command {
    command
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("HOME", lab.dir())
        .env("AWS_DEFAULT_REGION", "us-east-1")
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", MOTO);
    command
}
