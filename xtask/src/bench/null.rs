//! The floor under every server: it answers the same bytes to whatever it reads, and parses nothing. One thread with
//! epoll, as the clients take the machine's other processor.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::bare::Bare;

/// No descriptor has this number.
const LISTENER: Token = Token(usize::MAX);

/// Serves until it is killed.
///
/// # Errors
/// If it can't listen or wait.
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

/// Takes all that there are: epoll's edge does not come again for those that are left.
fn accept(listener: &TcpListener, poll: &Poll, streams: &mut HashMap<Token, TcpStream>) -> Result<()> {
    while let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.set_nodelay(true);
        let token = Token(usize::try_from(stream.as_raw_fd())?);
        poll.registry().register(&mut stream, token, Interest::READABLE)?;
        streams.insert(token, stream);
    }
    Ok(())
}

/// One read is one request: clients wait for each answer. `false` if the connection is over.
fn is_answered(stream: &mut TcpStream, answer: &[u8]) -> bool {
    let mut request = [0; 8192];
    match stream.read(&mut request) {
        Ok(0) => false,
        Ok(_) => stream.write_all(answer).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
