//! `metaproxy man`: prints the manual page.

use std::io;
use std::process::ExitCode;

use clap::CommandFactory as _;

use super::output::{print, unavailable};
use crate::cli::Cli;

/// Runs `metaproxy man`.
pub fn run() -> ExitCode {
    match man_page() {
        Ok(page) => {
            print(&String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
        Err(error) => unavailable(&error.to_string()),
    }
}

/// Writes one page about all subcommands. It omits clap's list of separate pages for subcommands, because these pages
/// do not exist.
fn man_page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let command = Cli::command();
    let whole = clap_mangen::Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    for of in command.get_subcommands() {
        let title = format!(".SH \"METAPROXY {}\"\n", of.get_name().to_uppercase());
        page.extend_from_slice(title.as_bytes());
        let part = clap_mangen::Man::new(of.clone());
        part.render_description_section(&mut page)?;
        part.render_options_section(&mut page)?;
        if of.get_after_help().is_some() {
            part.render_extra_section(&mut page)?;
        }
    }
    whole.render_version_section(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_page_contains_every_subcommand_and_names_no_page_that_does_not_exist() {
        let page = String::from_utf8(man_page().unwrap()).unwrap();
        assert!(
            page.contains("METAPROXY RUN") && !page.contains("metaproxy\\-run"),
            "{page}"
        );
        for command in Cli::command().get_subcommands() {
            let title = format!("METAPROXY {}", command.get_name().to_uppercase());
            assert!(page.contains(&title), "{title}");
        }
        assert!(page.contains("Examples:") && page.contains("Exit status:"));
    }
}
