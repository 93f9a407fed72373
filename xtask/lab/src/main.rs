//! `metaproxy-lab` runs in the lab's pods. Each client, attacker and proxy is one of its commands.

use std::process::ExitCode;

use clap::Parser;
use metaproxy_lab::clients::{attack, craft, dial, redirect};

/// Clients and attackers for the inside of the lab's pods.
#[derive(Debug, Parser)]
#[command(name = "metaproxy-lab")]
enum Client {
    /// Connect and count the answers
    Dial(dial::Dial),
    /// Attack the identification of callers
    Attack(attack::Attack),
    /// Send TCP packets that bypass connect hooks
    Craft(craft::Craft),
    /// Run a transparent proxy
    RedirectProxy(redirect::RedirectProxy),
}

fn main() -> ExitCode {
    let result = match Client::parse() {
        Client::Dial(dial) => dial::run(&dial),
        Client::Attack(attack) => attack::run(&attack),
        Client::Craft(craft) => craft::run(&craft),
        Client::RedirectProxy(proxy) => redirect::run(&proxy),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
