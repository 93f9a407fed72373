//! Writes the status as an HTML page, which loads nothing and has no script.

use std::fmt::Write as _;

use super::status::{PodLine, Status};
use crate::explain::{printable, short};

/// The content security policy: the page may use its own style, and load nothing.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #888; --good: #1a7f37; --bad: #cf222e; --warn: #9a6700 }
@media (prefers-color-scheme: dark) { :root { --good: #3fb950; --bad: #ff7b72; --warn: #d29922 } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; padding: 0 1.25rem; max-width: 78rem }
h1 { font-size: 1.35rem; margin: 0 0 .25rem } h2 { font-size: 1.05rem; margin: 1.75rem 0 .4rem }
p { margin: .15rem 0 } .soft { color: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) }
.warn { color: var(--warn) } .state { font-weight: 600 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line) }
th { font-weight: 600; font-size: .85rem; color: var(--soft); white-space: nowrap } td.number { text-align: right; font-variant-numeric: tabular-nums }
td.role { min-width: 28rem } .figures table { width: auto } code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere }
";

/// Makes the page.
pub fn html(status: &Status) -> String {
    let mut page = String::with_capacity(8 * 1024);
    // Writing to a string never fails.
    let _ = write(&mut page, status);
    page
}

fn write(page: &mut String, status: &Status) -> std::fmt::Result {
    let node = escaped(status.node.as_deref().unwrap_or("this node"));
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>metaproxy on {node}</title>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"10\"><style>{STYLE}</style></head>\n<body>"
    )?;
    state(page, status, &node)?;
    pods(page, status)?;
    refused(page, status)?;
    kernel(page, status)?;
    counters(page, status)?;
    page.push_str("</body></html>\n");
    Ok(())
}

/// Writes whether the agent is ready, and each part that has a problem.
fn state(page: &mut String, status: &Status, node: &str) -> std::fmt::Result {
    let (class, ready) = if status.ready {
        ("good", "ready")
    } else {
        ("bad", "not ready")
    };
    write!(
        page,
        "<h1>metaproxy on {node}</h1>\n<p><span class=\"state {class}\">{ready}</span> <span class=\"soft\">· {mode} · version \
         {version} · up {up}</span></p>",
        mode = escaped(&status.mode),
        version = escaped(&status.version),
        up = short(status.uptime_seconds),
    )?;
    for part in status.parts.iter().filter(|part| part.condition != "ok") {
        let class = if part.condition == "failed" { "bad" } else { "warn" };
        write!(
            page,
            "<p class=\"{class}\">{} {}: {}</p>",
            escaped(&part.part),
            escaped(&part.condition),
            escaped(part.detail.as_deref().unwrap_or_default())
        )?;
    }
    Ok(())
}

fn pods(page: &mut String, status: &Status) -> std::fmt::Result {
    write!(
        page,
        "<h2>Pods</h2><p class=\"soft\">{} of this node are known; with a role, or asking for one: {}</p>",
        status.pods_known,
        status.pods.len()
    )?;
    if !status.pods.is_empty() {
        table(page, &["Pod", "Verdict", "Role", "Session ends in", "Last error"])?;
        for pod in status.pods_by_trouble() {
            let class = if pod.verdict == "granted" { "good" } else { "bad" };
            let PodLine {
                pod,
                verdict,
                role,
                seconds_left,
                last_error,
                ..
            } = pod;
            write!(
                page,
                "<tr><td>{}</td><td class=\"{class}\">{}</td><td class=\"role\"><code>{}</code></td><td>{}</td><td>{}</td></tr>",
                escaped(pod),
                escaped(verdict),
                escaped(role.as_deref().unwrap_or("–")),
                seconds_left.map_or_else(|| "–".to_owned(), short),
                escaped(last_error.as_deref().unwrap_or_default()),
            )?;
        }
        page.push_str("</table></div>");
    }
    Ok(())
}

fn refused(page: &mut String, status: &Status) -> std::fmt::Result {
    if status.refused.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>Connections that were not served</h2>");
    table(page, &["Pod", "Kind", "Connections", "Meaning"])?;
    for line in &status.refused {
        let [pod, kind, connections, explanation] = line.cells().map(|cell| escaped(&cell));
        write!(
            page,
            "<tr><td>{pod}</td><td>{kind}</td><td class=\"number\">{connections}</td><td>{explanation}</td></tr>"
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn kernel(page: &mut String, status: &Status) -> std::fmt::Result {
    page.push_str("<h2>In the kernel</h2>");
    let listeners = escaped(&status.listeners.join(", "));
    let cgroup = escaped(status.cgroup.as_deref().unwrap_or("not there (yet)"));
    if !listeners.is_empty() {
        write!(page, "<p>Listens on <code>{listeners}</code></p>")?;
    }
    write!(page, "<p>Pods' cgroup <code>{cgroup}</code></p>")?;
    table(page, &["Link", "Program", "Attached to"])?;
    for one in &status.attached {
        write!(
            page,
            "<tr><td>{}</td><td><code>{}</code></td><td><code>{}</code></td></tr>",
            one.link,
            escaped(&one.program),
            escaped(&one.target)
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn counters(page: &mut String, status: &Status) -> std::fmt::Result {
    page.push_str("<h2>Counted since the start</h2>");
    page.push_str("<div class=\"scroll figures\"><table>");
    for (name, count) in &status.counters {
        write!(
            page,
            "<tr><td>{}</td><td class=\"number\">{count}</td></tr>",
            escaped(name)
        )?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn table(page: &mut String, head: &[&str]) -> std::fmt::Result {
    page.push_str("<div class=\"scroll\"><table><tr>");
    for name in head {
        write!(page, "<th>{name}</th>")?;
    }
    page.push_str("</tr>");
    Ok(())
}

/// Escapes text for HTML, because anyone may have written names and annotations.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in printable(text).chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::status::{AttachedLine, PartLine, RefusedLine};
    use super::*;

    fn status() -> Status {
        Status {
            version: "1".to_owned(),
            mode: "enforce".to_owned(),
            node: Some("<script>alert(1)</script>".to_owned()),
            pid: 1,
            started: "2026-01-01T00:00:00Z".to_owned(),
            uptime_seconds: 7300,
            ready: false,
            parts: vec![PartLine {
                part: "pods".to_owned(),
                condition: "failed".to_owned(),
                detail: Some("\"'&<".to_owned()),
            }],
            listeners: vec!["10.0.0.1:18080".to_owned()],
            cgroup: None,
            attached: vec![AttachedLine {
                link: 7,
                program: "mp_connect4".to_owned(),
                target: "/sys/fs/cgroup/kubepods".to_owned(),
            }],
            pods: vec![PodLine {
                pod: "apps/<b>".to_owned(),
                verdict: "refused".to_owned(),
                role: None,
                session_ends: None,
                seconds_left: None,
                last_error: Some("<img src=x>".to_owned()),
            }],
            pods_known: 3,
            refused: vec![RefusedLine {
                pod: Some("apps/<i>".to_owned()),
                kind: "no_room".to_owned(),
                connections: 4,
                explanation: "<a>".to_owned(),
            }],
            counters: [("kernel: redirected".to_owned(), 9)].into(),
        }
    }

    #[test]
    fn values_are_escaped_and_the_page_loads_nothing() {
        let page = html(&status());
        for raw in [
            "<script",
            "<b>",
            "<i>",
            "<a>",
            "<img",
            "src=",
            "http://",
            "https://",
            "javascript:",
        ] {
            let escaped_only = page.replace("&lt;img src=x&gt;", "");
            assert!(!escaped_only.contains(raw), "{raw} in {page}");
        }
        for shown in [
            "not ready",
            "up 2h01m",
            "&quot;&#39;&amp;&lt;",
            "mp_connect4",
            "apps/&lt;b&gt;",
            ">9<",
            "apps/&lt;i&gt;",
            "&lt;a&gt;",
        ] {
            assert!(page.contains(shown), "{shown} in {page}");
        }
    }
}
