//! Runs nginx, if it is installed, as a server for comparison. It serves the recorded body from memory.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use metaproxy_lab::netns::Netns;

use super::bare::parse;
use super::site::{Process, Site};
use crate::shell::has;

/// Starts nginx at this address in a namespace. Returns `None` if it is not installed.
///
/// # Errors
/// If its configuration cannot be written, or it does not listen.
pub fn start(site: &Site, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Option<Process>> {
    if !has("nginx") {
        println!("nginx is not measured, because it is not installed");
        return Ok(None);
    }
    let dir = site.lab.dir().join("nginx");
    fs::create_dir_all(&dir)?;
    let file = dir.join("nginx.conf");
    fs::write(&file, configuration(address, &fs::read(answer)?)?)?;
    let mut command = site.program_in(Path::new("nginx"), netns)?;
    command.arg("-p").arg(&dir).arg("-c").arg(&file);
    site.listening(&mut command, netns, address).map(Some)
}

/// Writes the configuration. nginx has as many workers as the agent. It logs nothing, and never closes a connection
/// because of its number of requests.
fn configuration(address: SocketAddr, recorded: &[u8]) -> Result<String> {
    let (_, body) = parse(recorded).context("the recorded answer")?;
    let body = std::str::from_utf8(&body)?;
    // nginx has no escape sequence for the dollar sign, which begins a variable.
    ensure!(!body.contains('$'), "the recorded answer contains a dollar sign");
    let workers = std::thread::available_parallelism()?.get().min(4);
    let body = body.replace('\\', "\\\\").replace('\'', "\\'");
    Ok(format!(
        "user root;
daemon off;
worker_processes {workers};
pid nginx.pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {address} backlog=4096;
        location / {{
            default_type application/json;
            return 200 '{body}';
        }}
    }}
}}
"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_quoted() {
        let address = "10.0.0.1:80".parse().unwrap();
        let written = configuration(address, b"HTTP/1.1 200 OK\r\nserver: x\r\n\r\n{\"a\": 'b\\'}").unwrap();
        assert!(written.contains(r#"return 200 '{"a": \'b\\\'}';"#), "{written}");
        assert!(configuration(address, b"HTTP/1.1 200 OK\r\n\r\n$a").is_err());
    }
}
