//! A server that answers every read with the same bytes and parses nothing. Its cost is the lower limit for any
//! server. It is one thread with epoll, because the clients use the machine's other processor.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::bare::Bare;

/// The token of the listener. A connection's token is its file descriptor, which never has this number.
const LISTENER: Token = Token(usize::MAX);

/// Serves until it is killed.
///
/// # Errors
/// If it cannot listen or wait.
pub fn run(null: &Bare) -> Result<()> {
    let answer = null.recorded()?;
    let mut listener = TcpListener::bind(null.listen()).context("cannot listen")?;
    let mut poll = Poll::new().context("cannot make an epoll instance")?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut streams = HashMap::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut streams)?;
            } else if !streams
                .get_mut(&event.token())
                .is_some_and(|stream| is_answered(stream, &answer))
            {
                streams.remove(&event.token());
            }
        }
    }
}

/// Accepts all waiting connections, because epoll is edge-triggered and does not report the remaining ones again.
fn accept(listener: &TcpListener, poll: &Poll, streams: &mut HashMap<Token, TcpStream>) -> Result<()> {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.set_nodelay(true);
        let token = Token(usize::try_from(stream.as_raw_fd())?);
        poll.registry().register(&mut stream, token, Interest::READABLE)?;
        streams.insert(token, stream);
    }
    Ok(())
}

/// Reads once and answers. One read is one request, because clients wait for each answer. Returns `false` if the
/// connection is over.
fn is_answered(stream: &mut TcpStream, answer: &[u8]) -> bool {
    let mut request = [0; 8192];
    match stream.read(&mut request) {
        Ok(0) => false,
        Ok(_) => stream.write_all(answer).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
