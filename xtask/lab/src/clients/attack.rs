//! `attack` runs in a pod and attacks the identification of callers for a limited time.
//!
//! It prints a line of JSON every 50 ms, counter → value, so that a test sees that the attack goes on while it looks
//! at other pods. An attack that cannot go on ends with an error.

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

/// How many descriptors of a process are not for connections.
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
    /// Answer the own connections to the listener, in a user and network namespace of one's own whose `lo` has the
    /// listener's address
    AnswerInNamespace(InNamespace),
    /// Answer the own connections to the listener by a raw socket: they are bound to `lo` and leave from 127.0.0.0/8
    AnswerRaw(Raw),
    /// Pass the packets of a client on to the listener, from an address of one's own and with the same sequence numbers
    Relay(Relay),
    /// Take part in a client's handshake, and use the option that it sends on connections of one's own
    Replay(Replay),
    /// Complete handshakes with the listener by a raw socket, without a socket of the kernel, and ask
    HandMade(HandMade),
    /// Send SYNs by a raw socket
    SynFlood(SynFlood),
    /// Hold connections half open: connect() with a filter that drops the answer
    HalfOpen(Connects),
    /// Connect and reset as fast as possible
    Connect(Connects),
    /// Connect and hold, and connect anew as soon as a connection is closed
    Hold(Connects),
}

#[derive(Clone, Debug, Args)]
struct InNamespace {
    #[arg(long)]
    listener: SocketAddr,
    /// Connect from this address and these ports, instead of ports that the kernel chooses
    #[arg(long)]
    source: Option<SocketAddr>,
    /// How many ports, from that of --source on
    #[arg(long, default_value_t = 10_000)]
    ports: u16,
    /// Connections to hold; each one beyond takes the place of the oldest
    #[arg(long, default_value_t = 10_000)]
    hold: usize,
    /// Most connections a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Use the network namespace as it is
    #[arg(long)]
    here: bool,
}

#[derive(Clone, Debug, Args)]
struct Raw {
    #[arg(long)]
    listener: SocketAddrV4,
    /// Connections to hold; each one beyond takes the place of the oldest
    #[arg(long, default_value_t = 70_000)]
    hold: usize,
    /// Most connections a second
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
    /// The address to pass them on from
    #[arg(long)]
    own: Ipv4Addr,
    /// What to do to the client's TCP options
    #[arg(long, value_enum, default_value = "as-is")]
    options: relay::Options,
    /// The cgroup id to claim, if --options forges one
    #[arg(long, default_value_t = 0)]
    claim: u64,
    /// What to count in the listener's answers
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
    /// Answer the client instead of the listener
    #[arg(long)]
    alone: bool,
    /// Connections for each option that was recorded
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
    /// Send from the addresses of this network of 16 bits
    #[arg(long)]
    source: Ipv4Addr,
    /// Most packets a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
}

#[derive(Clone, Debug, Args)]
struct Connects {
    #[arg(long, default_value = "169.254.169.254:80")]
    to: SocketAddr,
    /// Connections to hold
    #[arg(long, default_value_t = 10_000)]
    hold: usize,
    /// Most connections a second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Runs the attack until its time is up.
pub fn run(attack: &Attack) -> Result<()> {
    // On a node a pod has a share of the processors, and the node's own programs have theirs.
    // SAFETY: takes no pointer.
    let is_nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } == 0;
    if !is_nice {
        bail!("cannot lower the priority: {}", std::io::Error::last_os_error());
    }
    let descriptors = raise_descriptors()?;
    attack.privileges.take_on()?;
    let end = Instant::now() + Duration::from_secs(attack.seconds);
    // This must happen before there are threads: a process with several may not enter a user namespace (setns(2)), and
    // its children have only one of them.
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
