//! `dial` runs in a pod. It connects in any of the ways that the kernel offers, requests a path, counts the outcomes,
//! and prints them as one JSON object: outcome → count.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};

/// The arguments of `dial`.
#[derive(Clone, Debug, Args)]
pub struct Dial {
    /// The address to connect to
    #[arg(long, default_value = "169.254.169.254:80")]
    to: SocketAddr,
    /// How to connect
    #[arg(long, value_enum, default_value = "plain")]
    mode: Mode,
    /// The path to request
    #[arg(long, default_value = "/latest/meta-data/iam/security-credentials/")]
    path: String,
    /// What to do after connecting
    #[arg(long, value_enum, default_value = "get")]
    then: Then,
    /// Bind to this address first; port 0 lets the kernel choose
    #[arg(long)]
    source: Option<SocketAddr>,
    /// Bind each connection to the next port, starting at that of --source
    #[arg(long)]
    sweep: bool,
    /// Set IP_TRANSPARENT, so that an address that is not this pod's may be bound
    #[arg(long)]
    transparent: bool,
    /// Set IPV6_FREEBIND, which allows the same without any capability
    #[arg(long)]
    freebind: bool,
    /// The interface for SO_BINDTODEVICE
    #[arg(long)]
    device: Option<String>,
    /// The value of SO_MARK
    #[arg(long)]
    mark: Option<u32>,
    /// Move to this cgroup after the socket is made and before it connects
    #[arg(long)]
    move_to: Option<std::path::PathBuf>,
    /// Set SO_REUSEPORT beside SO_REUSEADDR
    #[arg(long)]
    reuse_port: bool,
    /// The number of connections, or 0 to connect for --seconds
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// How long to connect, if --count is 0
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// The number of threads
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Milliseconds between two connections of a thread; a long run must not use up the ports of its pod
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// The timeout of each answer, in milliseconds
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
    /// The number of requests on each connection
    #[arg(long, default_value_t = 1)]
    keep: usize,
    /// Add to each outcome the time from connect() to the answer, in milliseconds
    #[arg(long)]
    time: bool,
    /// Count the addresses that getpeername() returns instead of the answers
    #[arg(long)]
    peername: bool,
}

/// How to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// connect()
    Plain,
    /// connect() of a non-blocking socket, and poll()
    Nonblocking,
    /// sendto(MSG_FASTOPEN)
    Fastopen,
    /// IORING_OP_CONNECT
    Uring,
    /// IPPROTO_MPTCP
    Mptcp,
    /// IPV6_V6ONLY
    V6only,
}

/// What to do with the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// Send a request and read the answer
    Get,
    /// Close at once
    Close,
    /// Reset at once
    Reset,
}

/// Connects as the arguments say, and prints the outcomes.
pub fn run(dial: &Dial) -> Result<()> {
    println!("{}", serde_json::to_string(&outcomes(dial))?);
    Ok(())
}

fn outcomes(dial: &Dial) -> BTreeMap<String, usize> {
    let end = (dial.seconds > 0).then(|| Instant::now() + Duration::from_secs(dial.seconds));
    let counted = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for thread in 0..dial.threads {
            let counted = &counted;
            scope.spawn(move || {
                let mut own: BTreeMap<String, usize> = BTreeMap::new();
                let mut number = thread;
                while end.map_or(number < dial.count, |end| Instant::now() < end) {
                    let mut add = |outcome: String| *own.entry(outcome).or_default() += 1;
                    match dial.once(number, &mut add) {
                        Ok(()) => {}
                        Err(error) => add(describe(&error)),
                    }
                    number += dial.threads;
                    std::thread::sleep(Duration::from_millis(dial.pause));
                }
                if let Ok(mut all) = counted.lock() {
                    for (outcome, count) in own {
                        *all.entry(outcome).or_default() += count;
                    }
                }
            });
        }
    });
    counted.into_inner().unwrap_or_default()
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => format!("error {}", nix::errno::Errno::from_raw(errno)),
        None => format!("error {:?}", error.kind()),
    }
}

impl Dial {
    fn once(&self, number: usize, add: &mut impl FnMut(String)) -> io::Result<()> {
        let start = Instant::now();
        let socket = self.socket()?;
        self.bind(&socket, number)?;
        if let Some(cgroup) = &self.move_to {
            std::fs::write(cgroup.join("cgroup.procs"), "0")?;
        }
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.path, self.to.ip());
        let sent = self.connect(&socket, request.as_bytes())?;
        let mut stream = TcpStream::from(socket);
        match self.then {
            Then::Close => {
                add("closed".to_owned());
                return Ok(());
            }
            Then::Reset => {
                linger_zero(&stream)?;
                add("reset".to_owned());
                return Ok(());
            }
            Then::Get => {}
        }
        if self.peername {
            add(stream.peer_addr()?.to_string());
            return Ok(());
        }
        let timeout = Some(Duration::from_millis(self.timeout));
        stream.set_read_timeout(timeout)?;
        for round in 0..self.keep {
            if !(sent && round == 0) {
                stream.write_all(request.as_bytes())?;
            }
            let (outcome, goes_on) = read_answer(&mut stream)?;
            let after = if self.time {
                format!(" after {} ms", start.elapsed().as_millis())
            } else {
                String::new()
            };
            add(outcome + &after);
            if !goes_on {
                break;
            }
        }
        if self.source.is_some_and(|source| source.port() != 0) {
            // A reset leaves no TIME_WAIT, so that the port can be used again at once.
            linger_zero(&stream)?;
        }
        Ok(())
    }

    fn socket(&self) -> io::Result<OwnedFd> {
        let family = if self.to.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        let protocol = if self.mode == Mode::Mptcp {
            libc::IPPROTO_MPTCP
        } else {
            libc::IPPROTO_TCP
        };
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
        check(fd)?;
        // SAFETY: the kernel just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        if self.mode == Mode::V6only {
            set(&socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY)?;
        }
        Ok(socket)
    }

    fn bind(&self, socket: &OwnedFd, number: usize) -> io::Result<()> {
        use nix::sys::socket::{setsockopt, sockopt};
        if let Some(device) = &self.device {
            setsockopt(socket, sockopt::BindToDevice, &device.into())?;
        }
        if let Some(mark) = &self.mark {
            setsockopt(socket, sockopt::Mark, mark)?;
        }
        if self.freebind {
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND)?;
        }
        if self.transparent {
            set(socket, libc::IPPROTO_IP, libc::IP_TRANSPARENT)?;
        }
        let Some(mut source) = self.source else {
            return Ok(());
        };
        if self.sweep {
            let span = 65_000 - usize::from(source.port());
            source.set_port(source.port() + (number % span) as u16);
        }
        set(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR)?;
        if self.reuse_port {
            set(socket, libc::SOL_SOCKET, libc::SO_REUSEPORT)?;
        }
        let (address, length) = raw(source);
        // SAFETY: the address lives through the call and has the length that is passed.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })
    }

    /// Connects, and returns whether the request was sent with the SYN.
    fn connect(&self, socket: &OwnedFd, request: &[u8]) -> io::Result<bool> {
        let fd = socket.as_raw_fd();
        let (address, length) = raw(self.to);
        let target = (&raw const address).cast();
        match self.mode {
            Mode::Plain | Mode::Mptcp | Mode::V6only => {
                set_timeout(socket, Duration::from_millis(self.timeout))?;
                // SAFETY: the address lives through the call and has the length that is passed.
                check(unsafe { libc::connect(fd, target, length) })?;
            }
            Mode::Nonblocking => self.connect_nonblocking(socket)?,
            Mode::Fastopen => {
                // SAFETY: the address and the request live through the call and have the lengths that are passed.
                let sent = unsafe {
                    libc::sendto(
                        fd,
                        request.as_ptr().cast(),
                        request.len(),
                        libc::MSG_FASTOPEN,
                        target,
                        length,
                    )
                };
                check(sent as i32)?;
                return Ok(true);
            }
            Mode::Uring => connect_uring(fd, target, length)?,
        }
        Ok(false)
    }

    fn connect_nonblocking(&self, socket: &OwnedFd) -> io::Result<()> {
        let stream = socket.try_clone().map(TcpStream::from)?;
        stream.set_nonblocking(true)?;
        let (address, length) = raw(self.to);
        // SAFETY: the address lives through the call and has the length that is passed.
        match check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) }) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => return other,
        }
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        // SAFETY: the array has one element, which is the length that is passed.
        match unsafe { libc::poll(&raw mut poll, 1, self.timeout as i32) } {
            1 => {}
            _ => return Err(io::ErrorKind::TimedOut.into()),
        }
        match stream.take_error()? {
            Some(error) => Err(error),
            None => stream.set_nonblocking(false),
        }
    }
}

fn connect_uring(fd: i32, target: *const libc::sockaddr, length: libc::socklen_t) -> io::Result<()> {
    let mut ring = io_uring::IoUring::new(2)?;
    let entry = io_uring::opcode::Connect::new(io_uring::types::Fd(fd), target, length).build();
    // SAFETY: the address outlives the operation, which is waited for below.
    unsafe { ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::OutOfMemory)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|done| done.result()) {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Returns the outcome, which is the body of a `200` answer and the status of others, and whether the connection is
/// kept.
fn read_answer(stream: &mut TcpStream) -> io::Result<(String, bool)> {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some((head, body)) = split(&answer) {
            let field = |name: &str| {
                head.lines()
                    .find_map(|line| Some(line.to_ascii_lowercase().strip_prefix(name)?.trim().to_owned()))
            };
            let length = field("content-length:").and_then(|length| length.parse::<usize>().ok());
            if body.len() >= length.unwrap_or(0) {
                let status = head.split(' ').nth(1).unwrap_or_default();
                let body = String::from_utf8_lossy(body).into_owned();
                let outcome = if status == "200" {
                    body
                } else {
                    format!("status {status}")
                };
                return Ok((outcome, field("connection:").as_deref() != Some("close")));
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(("no answer".to_owned(), false)),
            Ok(length) => answer.extend(&chunk[..length]),
            // The kernel may interrupt a read while it cleans up an io_uring that was closed.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]))
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set(socket: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    let on: i32 = 1;
    // SAFETY: the value is an int, which has the length that is passed.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4) })
}

fn set_timeout(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    TcpStream::from(socket.try_clone()?).set_write_timeout(Some(timeout))
}

fn linger_zero(stream: &TcpStream) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger).map_err(io::Error::from)
}

/// Encodes an address as `struct sockaddr`.
fn raw(address: SocketAddr) -> (nix::sys::socket::SockaddrStorage, libc::socklen_t) {
    use nix::sys::socket::SockaddrLike as _;
    let storage = nix::sys::socket::SockaddrStorage::from(address);
    let length = storage.len();
    (storage, length)
}
