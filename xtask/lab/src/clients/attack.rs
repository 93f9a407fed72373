//! `attack` runs in a pod and attacks the identification of callers for a limited time.
//!
//! It prints a line of JSON every 50 ms, counter → value, so that a test knows that the attack continues while it
//! tests other pods. An attack that cannot continue ends with an error.

mod answered;
mod flood;
mod privileges;
mod processes;
mod progress;
mod relay;
mod replay;
mod sockets;
mod wire;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};

use self::privileges::Privileges;
use self::progress::Progress;

/// The number of a process's descriptors that are reserved for other uses than connections.
const OTHER_DESCRIPTORS: u64 = 64;

/// The arguments of `attack`.
#[derive(Clone, Debug, Args)]
pub struct Attack {
    /// The privileges that it runs with
    #[arg(long, value_enum, default_value = "root")]
    privileges: Privileges,
    /// End after this many seconds
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Clone, Debug, Subcommand)]
enum Kind {
    /// Answer the attacker's connections to the listener, in a new user and network namespace whose `lo` has the
    /// listener's address
    AnswerInNamespace(InNamespace),
    /// Answer the attacker's connections to the listener by a raw socket: they are bound to `lo` and come from
    /// 127.0.0.0/8
    AnswerRaw(Raw),
    /// Forward the packets of a client to the listener, from the attacker's address and with the same sequence
    /// numbers
    Relay(Relay),
    /// Take part in a client's handshake, and replay the client's option on connections of the attacker
    Replay(Replay),
    /// Complete handshakes with the listener by a raw socket, without a TCP socket, and send requests
    HandMade(HandMade),
    /// Send SYNs by a raw socket
    SynFlood(SynFlood),
    /// Hold connections half open: connect() with a filter that drops the answer
    HalfOpen(Connects),
    /// Connect and reset as fast as possible
    Connect(Connects),
    /// Connect and hold the connections, and replace each one that is closed
    Hold(Connects),
}

#[derive(Clone, Debug, Args)]
struct InNamespace {
    #[arg(long)]
    listener: SocketAddr,
    /// Connect from this address and these ports, instead of ports that the kernel chooses
    #[arg(long)]
    source: Option<SocketAddr>,
    /// The number of ports, starting at that of --source
    #[arg(long, default_value_t = 10_000)]
    ports: u16,
    /// The number of connections to hold; each further one replaces the oldest
    #[arg(long, default_value_t = 10_000)]
    hold: usize,
    /// The maximum number of connections per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Use the current network namespace
    #[arg(long)]
    here: bool,
}

#[derive(Clone, Debug, Args)]
struct Raw {
    #[arg(long)]
    listener: SocketAddrV4,
    /// The number of connections to hold; each further one replaces the oldest
    #[arg(long, default_value_t = 70_000)]
    hold: usize,
    /// The maximum number of connections per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
}

#[derive(Clone, Debug, Args)]
struct Relay {
    /// The interface at which the client's packets arrive
    #[arg(long)]
    device: String,
    /// The address and port at which they arrive
    #[arg(long)]
    front: SocketAddrV4,
    #[arg(long)]
    listener: SocketAddrV4,
    /// The address to forward them from
    #[arg(long)]
    own: Ipv4Addr,
    /// How to change the client's TCP options
    #[arg(long, value_enum, default_value = "as-is")]
    options: relay::Options,
    /// The cgroup id to claim, if --options forges one
    #[arg(long, default_value_t = 0)]
    claim: u64,
    /// The text to count in the listener's answers
    #[arg(long, default_value = "HTTP/1.1 200")]
    watch_for: String,
}

#[derive(Clone, Debug, Args)]
struct Replay {
    #[arg(long)]
    device: String,
    /// The address and port at which the client's packets arrive
    #[arg(long)]
    front: SocketAddrV4,
    #[arg(long)]
    listener: SocketAddrV4,
    /// The address to connect from
    #[arg(long)]
    own: Ipv4Addr,
    /// Answer the client without contacting the listener
    #[arg(long)]
    alone: bool,
    /// The number of connections for each recorded option
    #[arg(long, default_value_t = 500)]
    tries: u64,
}

#[derive(Clone, Debug, Args)]
struct HandMade {
    #[arg(long)]
    listener: SocketAddrV4,
    #[arg(long)]
    own: Ipv4Addr,
    /// An option to put into every packet after the SYN, in hexadecimal
    #[arg(long, default_value = "")]
    option: String,
}

#[derive(Clone, Debug, Args)]
struct SynFlood {
    #[arg(long)]
    listener: SocketAddrV4,
    /// Send from the addresses of this /16 network
    #[arg(long)]
    source: Ipv4Addr,
    /// The maximum number of packets per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
}

#[derive(Clone, Debug, Args)]
struct Connects {
    #[arg(long, default_value = "169.254.169.254:80")]
    to: SocketAddr,
    /// The maximum number of connections to hold
    #[arg(long, default_value_t = 10_000)]
    hold: usize,
    /// The maximum number of connections per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Runs the attack until its time is up.
pub fn run(attack: &Attack) -> Result<()> {
    // The attack gets the lowest priority, because on a real node a pod cannot take the processors from the node's
    // own programs.
    // SAFETY: takes no pointer.
    let is_nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } == 0;
    if !is_nice {
        bail!("cannot lower the priority: {}", std::io::Error::last_os_error());
    }
    let descriptors = raise_descriptors()?;
    attack.privileges.take_on()?;
    let end = Instant::now() + Duration::from_secs(attack.seconds);
    // This must happen before there are threads: a process with several threads must not enter a user namespace
    // (setns(2)), and its children have only one of the threads (fork(2)).
    let processes = match &attack.kind {
        Kind::AnswerInNamespace(options) => Some(answered::in_namespace(options, descriptors, end)?),
        Kind::AnswerRaw(options) => Some(answered::raw(options, descriptors, end)?),
        _ => None,
    };
    let progress = Progress::start();
    if let Some(mut processes) = processes {
        if let Kind::AnswerRaw(options) = &attack.kind {
            return answered::answer(options.listener, &processes, &progress, end);
        }
        return processes.watch("established", &progress, end);
    }
    match &attack.kind {
        Kind::AnswerInNamespace(_) | Kind::AnswerRaw(_) => Ok(()),
        Kind::Relay(options) => relay::run(options, &progress, end),
        Kind::Replay(options) => replay::replay(options, &progress, end),
        Kind::HandMade(options) => replay::hand_made(options, &progress, end),
        Kind::SynFlood(options) => flood::syn(options, &progress, end),
        Kind::HalfOpen(options) => flood::half_open(options, &progress, end),
        Kind::Connect(options) => flood::connect(options, &progress, end),
        Kind::Hold(options) => flood::hold(options, &progress, end),
    }
}

/// Raises the limit of descriptors as far as possible, and returns how many are for connections.
fn raise_descriptors() -> Result<usize> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of descriptors")?;
    Ok(hard.saturating_sub(OTHER_DESCRIPTORS).min(1 << 20) as usize)
}
