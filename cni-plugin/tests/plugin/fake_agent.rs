// SPDX-License-Identifier: Apache-2.0
//! An agent that hands out addresses and fails as it is told.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use weft_api::{
    Allocation, Answer, ApiError, AssignedAddress, AttachmentId, AttachmentSpec, DnsSettings, ErrorCode, Mac, Reply,
    Request, Route,
};

/// The Ethernet address of all gateways.
pub(crate) const GATEWAY_MAC: &str = "02:77:65:66:74:01";

/// A failure to inject.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Refuse the request called `.0` (its `op`) with the code.
    Refuse(&'static str, ErrorCode),
    /// Serve it and hang up instead of answering.
    HangUp(&'static str),
    /// Go away for good, instead of serving it.
    Die(&'static str),
    /// Serve it and never answer.
    Stall(&'static str),
    /// Answer a line that is no reply.
    Garbage(&'static str),
}

#[derive(Default)]
struct State {
    /// The namespace of the links that are attached.
    netns: String,
    /// Links stay down when they are attached.
    idle: bool,
    /// Links that were up when they were attached.
    early: Vec<String>,
    heard: Vec<Request>,
    held: BTreeMap<AttachmentId, Allocation>,
    given: u8,
    faults: Vec<Fault>,
    change: Option<fn(&mut Allocation)>,
    dead: bool,
}

/// A running fake agent.
pub(crate) struct FakeAgent {
    state: Arc<Mutex<State>>,
    socket: PathBuf,
}

impl FakeAgent {
    /// Listens at `socket`, and brings links of the namespace `netns` up as it attaches them.
    pub(crate) fn start(socket: &Path, netns: &str) -> Self {
        let state = State { netns: netns.to_owned(), ..State::default() };
        let agent = Self { state: Arc::new(Mutex::new(state)), socket: socket.to_owned() };
        agent.listen();
        agent
    }

    fn listen(&self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        let (state, socket) = (self.state.clone(), self.socket.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if lock(&state).dead {
                    return;
                }
                let (state, socket) = (state.clone(), socket.clone());
                thread::spawn(move || converse(&state, &socket, stream));
            }
        });
    }

    /// Adds a fault for all requests to come.
    pub(crate) fn fail(&self, fault: Fault) {
        lock(&self.state).faults.push(fault);
    }

    /// Changes every allocation to come.
    pub(crate) fn change(&self, change: fn(&mut Allocation)) {
        lock(&self.state).change = Some(change);
    }

    /// Forgets all faults and comes back if it went away.
    pub(crate) fn recover(&self) {
        let mut state = lock(&self.state);
        state.faults.clear();
        if std::mem::take(&mut state.dead) {
            drop(state);
            self.listen();
        }
    }

    /// Goes away.
    pub(crate) fn die(&self) {
        die(&mut lock(&self.state), &self.socket);
    }

    /// The requests so far, each by its `op`.
    pub(crate) fn heard(&self) -> Vec<String> {
        lock(&self.state).heard.iter().map(op).collect()
    }

    /// The latest allocation asked for.
    pub(crate) fn asked(&self) -> AttachmentSpec {
        let heard = lock(&self.state).heard.clone();
        let specs = heard.into_iter().rev().find_map(|request| match request {
            Request::Allocate(spec) => Some(spec),
            _ => None,
        });
        specs.expect("no allocation was asked for")
    }

    /// The latest request of that `op`.
    pub(crate) fn latest(&self, wanted: &str) -> Request {
        lock(&self.state).heard.iter().rev().find(|request| op(request) == wanted).cloned().expect(wanted)
    }

    /// Forgets what it has heard.
    pub(crate) fn forget(&self) {
        lock(&self.state).heard.clear();
    }

    /// Brings no link up any more.
    pub(crate) fn leave_down(&self) {
        lock(&self.state).idle = true;
    }

    /// Links that the plugin had brought up before it asked to attach them.
    pub(crate) fn early(&self) -> Vec<String> {
        lock(&self.state).early.clone()
    }

    /// What is allocated now.
    pub(crate) fn held(&self) -> Vec<AttachmentId> {
        lock(&self.state).held.keys().cloned().collect()
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap()
}

fn die(state: &mut State, socket: &Path) {
    state.dead = true;
    fs::remove_file(socket).unwrap();
}

fn op(request: &Request) -> String {
    serde_json::to_value(request).unwrap()["op"].as_str().unwrap().to_owned()
}

fn converse(state: &Mutex<State>, socket: &Path, mut stream: UnixStream) {
    let reader = BufReader::new(stream.try_clone().unwrap());
    for line in reader.lines().map_while(Result::ok) {
        let request: Request = serde_json::from_str(&line).unwrap();
        if let Request::Hello { newest: version, .. } = request {
            let hello = Reply::Ok(Answer::Hello { version, agent: "fake".to_owned() });
            writeln!(stream, "{}", serde_json::to_string(&hello).unwrap()).unwrap();
            continue;
        }
        let mut state = lock(state);
        state.heard.push(request.clone());
        let name = op(&request);
        let fault = state.faults.iter().find(|fault| concerns(fault, &name)).cloned();
        let reply = match fault {
            Some(Fault::Refuse(_, code)) => Reply::Error(ApiError { code, message: format!("no {name} today") }),
            Some(Fault::HangUp(_)) => {
                serve(&mut state, request);
                return;
            }
            Some(Fault::Stall(_)) => {
                serve(&mut state, request);
                continue;
            }
            Some(Fault::Die(_)) => return die(&mut state, socket),
            Some(Fault::Garbage(_)) => {
                writeln!(stream, "tuesday").unwrap();
                continue;
            }
            None => Reply::Ok(serve(&mut state, request)),
        };
        drop(state);
        let line = serde_json::to_string(&reply).unwrap();
        if writeln!(stream, "{line}").is_err() {
            return;
        }
    }
}

fn concerns(fault: &Fault, name: &str) -> bool {
    let (Fault::Refuse(op, _) | Fault::HangUp(op) | Fault::Die(op) | Fault::Stall(op) | Fault::Garbage(op)) = fault;
    *op == name
}

fn serve(state: &mut State, request: Request) -> Answer {
    match request {
        Request::Allocate(spec) => {
            state.given += 1;
            let mut allocation = allocation(&spec, state.given);
            if let Some(change) = state.change {
                change(&mut allocation);
            }
            state.held.insert(spec.id, allocation.clone());
            Answer::Allocation(allocation)
        }
        Request::Release { id } => {
            state.held.remove(&id);
            Answer::Done
        }
        Request::Gc { network, valid } => {
            let stale = |id: &AttachmentId| id.network == network && !valid.contains(id);
            let released: Vec<_> = state.held.keys().filter(|id| stale(id)).cloned().collect();
            state.held.retain(|id, _| !stale(id));
            Answer::Released(released)
        }
        Request::Attach { link, .. } => {
            let ip = |arguments: &[&str]| {
                let output = Command::new("ip").args(["-n", &state.netns]).args(arguments).output().unwrap();
                String::from_utf8(output.stdout).unwrap()
            };
            if ip(&["-o", "link", "show", "dev", &link.ifname, "up"]).contains(&link.ifname) {
                state.early.push(link.ifname.clone());
            }
            if !state.idle {
                ip(&["link", "set", &link.ifname, "up"]);
            }
            Answer::Done
        }
        _ => Answer::Done,
    }
}

fn allocation(spec: &AttachmentSpec, number: u8) -> Allocation {
    let route = |dst: &str, gateway: Option<&str>| Route {
        dst: dst.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
    };
    let assigned = |address: String, gateway: &str| AssignedAddress {
        address: address.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
    };
    Allocation {
        addresses: vec![
            assigned(format!("10.244.1.{}/32", number + 1), "10.244.1.1"),
            assigned(format!("fd00:10:244:1::{number:x}/128"), "fe80::1"),
        ],
        mac: spec.mac.unwrap_or(Mac([2, 0, 0, 0, 1, number])),
        gateway_mac: GATEWAY_MAC.parse().unwrap(),
        host_ifname: format!("weft{number:010x}"),
        mtu: spec.mtu.unwrap_or(1450),
        routes: vec![
            route("10.244.1.1/32", None),
            route("0.0.0.0/0", Some("10.244.1.1")),
            route("fe80::1/128", None),
            route("::/0", Some("fe80::1")),
        ],
        dns: DnsSettings { nameservers: vec!["10.96.0.10".parse().unwrap()], search: vec!["cluster.local".into()] },
        socket_path: (spec.port == weft_api::PortKind::VhostUser).then(|| format!("/run/weft/vhost/{number}.sock")),
    }
}
