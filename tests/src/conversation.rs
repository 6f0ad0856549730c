// SPDX-License-Identifier: Apache-2.0

//! Clients' sockets that go on asking one server of `weft-probe` while a test changes what is around them.

use std::{
    cell::Cell,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, setsockopt, socket, sockopt,
    },
};

use crate::{
    hostile::Place,
    shell::{Answer, parse_answer},
};

/// How long one answer, or one attempt to connect, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A source port that others of the same place may have too, towards other servers; 0: one that nobody has. Of those that others
/// may have the kernel would give one twice.
fn bound(kind: SockType, port: u16, to: SocketAddr) -> io::Result<OwnedFd> {
    let (family, any): (_, IpAddr) = if to.is_ipv4() {
        (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into())
    } else {
        (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into())
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if port != 0 {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    Ok(socket)
}

/// A UDP socket with one server, which is asked again and again.
#[derive(Debug)]
pub struct UdpFlow {
    socket: UdpSocket,
    to: SocketAddr,
    asked: Cell<u32>,
}

impl UdpFlow {
    /// From any port of `place`.
    ///
    /// # Errors
    /// There is no route to `to`.
    pub fn open(place: &impl Place, to: SocketAddr) -> Result<Self> {
        Self::from_port(place, 0, to)
    }

    /// From `port` of `place`, which other flows may have as well.
    ///
    /// # Errors
    /// There is no route to `to`.
    pub fn from_port(place: &impl Place, port: u16, to: SocketAddr) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::from(bound(SockType::Datagram, port, to)?);
            socket.connect(to)?;
            Ok(socket)
        };
        let socket = place.inside(open).with_context(|| format!("a UDP socket from port {port} to {to}"))?;
        Ok(Self { socket, to, asked: Cell::new(0) })
    }

    /// Where it leads.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// Asks once; answers of questions before are left out.
    ///
    /// # Errors
    /// No answer, or an ICMP error about this question or one before.
    pub fn ask(&self) -> Result<Answer> {
        self.asked.set(self.asked.get() + 1);
        let question = format!("question {}", self.asked.get());
        self.socket.send(question.as_bytes()).with_context(|| format!("ask {}", self.to))?;
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket.set_read_timeout(Some(left))?;
            let read = self.socket.recv(&mut buffer).with_context(|| format!("no answer from {}", self.to))?;
            let text = String::from_utf8_lossy(&buffer[..read]);
            let (greeting, of) = text.split_once('\n').with_context(|| format!("not an answer: {text}"))?;
            if of == question {
                return parse_answer(greeting);
            }
        }
        bail!("no answer from {}", self.to)
    }

    /// Sends a datagram of `bytes` bytes, in fragments where it does not fit.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn send(&self, bytes: usize) -> Result<()> {
        self.socket.send(&vec![b'd'; bytes]).with_context(|| format!("send {bytes} bytes to {}", self.to)).map(drop)
    }
}

/// An established connection with a server that greets and echoes.
#[derive(Debug)]
pub struct TcpConnection {
    stream: BufReader<TcpStream>,
    greeting: Answer,
    said: u32,
}

impl TcpConnection {
    /// From any port of `place`.
    ///
    /// # Errors
    /// It is refused, or nobody answers.
    pub fn open(place: &impl Place, to: SocketAddr) -> Result<Self> {
        Self::from_port(place, 0, to)
    }

    /// From `port` of `place`, which connections to others may have as well. It is reset when it is dropped, so that the port is
    /// free at once.
    ///
    /// # Errors
    /// It is refused, or nobody answers.
    pub fn from_port(place: &impl Place, port: u16, to: SocketAddr) -> Result<Self> {
        let stream =
            place.inside(|| connected(port, to)).with_context(|| format!("connect from port {port} to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).with_context(|| format!("no greeting from {to}"))?;
        let greeting = parse_answer(&line)?;
        Ok(Self { stream, greeting, said: 0 })
    }

    /// Who serves it, and whom the server saw.
    #[must_use]
    pub fn greeting(&self) -> &Answer {
        &self.greeting
    }

    /// That what is said is echoed.
    ///
    /// # Errors
    /// It was ended, or nothing comes.
    pub fn goes_on(&mut self) -> Result<()> {
        self.said += 1;
        let said = format!("word {}\n", self.said);
        self.stream.get_mut().write_all(said.as_bytes()).context("speak on the connection")?;
        let mut line = String::new();
        self.stream.read_line(&mut line).context("hear on the connection")?;
        ensure!(line == said, "{said:?} came back as {line:?}");
        Ok(())
    }
}

/// A stream from `port` that is connected before [`PATIENCE`] is over.
fn connected(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = bound(SockType::Stream, port, to)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let patience = PollTimeout::try_from(PATIENCE).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(std::os::fd::AsFd::as_fd(&stream), PollFlags::POLLOUT)], patience)? == 0 {
        return Err(io::ErrorKind::TimedOut.into());
    }
    match getsockopt(&stream, sockopt::SocketError)? {
        0 => stream.set_nonblocking(false).map(|()| stream),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
