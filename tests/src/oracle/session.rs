// SPDX-License-Identifier: Apache-2.0

//! A chain of states on the path `run`: in each, new connections and, after a change, those that stand.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{
    check::{self, Outcome, Seen, Sent},
    clients::{Clients, backend_of},
    frame::{ACK, Frame, HOPS, SYN, SYN_ACK},
    known::{Known, Lookalikes},
    model::{self, Quirks, Source, Target, Verdict},
    run::Runner,
    shrink::Ground,
    site::{HERE, Site, is_anew},
    world::{From, Mode, Packet, Protocol, World},
};

/// What happens to the node between two states, beside the change of objects.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Event {
    /// The agent is killed and started again.
    pub(super) restart: bool,
    /// The pod's device is made anew.
    pub(super) replug: Option<String>,
    /// So many ticks of the programs' clock go by for clients that keep their backends: nobody waits for that, on the path `run`.
    #[serde(default)]
    pub(super) ticks: u32,
}

/// One state, and the packets that are sent in it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct State {
    pub(super) event: Event,
    pub(super) world: World,
    pub(super) packets: Vec<Packet>,
}

/// A connection that stands.
#[derive(Clone, Debug)]
struct Standing {
    packet: Packet,
    /// Where its Service led.
    backend: Option<(IpAddr, u16)>,
    sent: Sent,
    last: Instant,
}

/// Counts of a run.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    pub(super) passed: u64,
    pub(super) known: BTreeMap<&'static str, u64>,
    pub(super) verdicts: BTreeMap<String, u64>,
}

/// Something was seen that the oracle does not say.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) packet: Packet,
    pub(super) text: String,
}

/// A site with its programs, from one state to the next.
pub(super) struct Session {
    pub(super) site: Site,
    runner: Runner,
    standing: Vec<Standing>,
    lookalikes: Lookalikes,
    clients: Clients,
    /// Nothing depends on what was before.
    is_new: bool,
    pub(super) count: Count,
}

/// Connections that go on into the next state.
const KEPT: usize = 40;
/// Connections stand so long at least without a packet: those of a question and its answer (echo, and UDP to a well-known port)
/// 10 s, others that nobody has answered 30 s. On a busy machine a state may take longer to come.
const BRIEF: Duration = Duration::from_secs(8);
const LASTING: Duration = Duration::from_secs(25);

/// Whether the kernel may have forgotten a connection whose last packet was at `last`.
pub(super) fn may_be_over(packet: &Packet, last: Instant) -> bool {
    let brief = packet.protocol == Protocol::Echo || packet.protocol == Protocol::Udp && packet.dport < 1024;
    last.elapsed() > if brief { BRIEF } else { LASTING }
}

impl Session {
    pub(super) fn new(site: Site) -> Result<Self> {
        let runner = Runner::enter(&site)?;
        let (standing, lookalikes, count) = (Vec::new(), Lookalikes::default(), Count::default());
        Ok(Self { site, runner, standing, lookalikes, clients: Clients::default(), is_new: true, count })
    }

    fn again(&mut self, world: &World, standing: &mut Standing) -> Result<Option<String>> {
        let packet = standing.packet.clone();
        let unbound = (standing.backend, None);
        if answers_first(standing, &model::answer_standing(world, HERE, &packet, unbound, Quirks::default()))
            && let Some(text) = self.answer(world, &packet, &standing.sent)?
        {
            return Ok(Some(format!("before the next packet, {text}")));
        }
        let began = Instant::now();
        let seen = self.forward(world, &packet, ACK)?;
        let backends = (standing.backend, self.clients.backend(world, HERE, &packet));
        let oracle = |quirks| model::answer_standing(world, HERE, &packet, backends, quirks);
        let (verdict, known) = match self.judge(&seen, &packet, world, oracle) {
            Outcome::Right(verdict) => (verdict, false),
            Outcome::Known(known, verdict) => {
                self.book_known(known);
                (verdict, true)
            }
            Outcome::Wrong { expected } => return Ok(Some(differ(&expected, &seen))),
        };
        self.book("standing", &verdict);
        let now = match &seen {
            Seen::Sent(sent) => backend_of(&packet, sent.address, sent.port),
            Seen::Dropped(_) | Seen::Kernel => None,
        };
        self.clients.note_standing((world, HERE, &packet), standing.backend, now, began);
        let Seen::Sent(sent) = seen else { return Ok(None) };
        let same_place =
            (&sent.to, sent.address, sent.port) == (&standing.sent.to, standing.sent.address, standing.sent.port);
        if same_place && (sent.source, sent.sport) != (standing.sent.source, standing.sent.sport) {
            return Ok(Some(format!(
                "it comes from {}:{} now, from {}:{} before",
                sent.source, sent.sport, standing.sent.source, standing.sent.sport
            )));
        }
        if same_place
            && !known
            && let Some(text) = self.answer(world, &packet, &sent)?
        {
            return Ok(Some(text));
        }
        standing.backend = now;
        (standing.sent, standing.last) = (sent, Instant::now());
        self.standing.push(standing.clone());
        Ok(None)
    }

    fn forward(&mut self, world: &World, packet: &Packet, tcp_flags: u8) -> Result<Seen> {
        let tcp_flags = if packet.protocol == Protocol::Tcp { tcp_flags } else { 0 };
        let frame = Frame {
            macs: [[0; 6]; 2],
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            sport: packet.sport,
            dport: packet.dport,
            hops: HOPS,
            tcp_flags,
            reply: false,
        };
        let seen = self.runner.send(&self.site, world, &packet.from, packet.wrong_mac, frame)?;
        if let Seen::Sent(sent) = &seen {
            self.lookalikes.note(packet, (sent.source, sent.sport), (sent.address, sent.port));
        }
        Ok(seen)
    }

    /// Sends the first packet of a connection: what was seen, how that stands to the oracle, and what is wrong with the backend that its
    /// client has from now on.
    fn first(&mut self, world: &World, packet: &Packet) -> Result<(Seen, Outcome, Option<String>)> {
        let began = Instant::now();
        let seen = self.forward(world, packet, SYN)?;
        let last = self.clients.backend(world, HERE, packet);
        let outcome = self.judge(&seen, packet, world, |quirks| model::answer(world, HERE, packet, last, quirks));
        if last.is_some() {
            *self.count.verdicts.entry("new: of a client that keeps its backend".to_owned()).or_default() += 1;
        }
        let backend = match &seen {
            Seen::Sent(sent) => backend_of(packet, sent.address, sent.port),
            Seen::Dropped(_) | Seen::Kernel => None,
        };
        let before = self.clients.free();
        let unkept = self.clients.note(world, HERE, packet, backend, began);
        for (at, what) in ["whose time was over", "that comes after another one"].into_iter().enumerate() {
            let more = self.clients.free()[at] - before[at];
            *self.count.verdicts.entry(format!("new: of a client {what}")).or_default() += more;
        }
        Ok((seen, outcome, unkept))
    }

    /// Compares what was seen with the oracle. The oracle sees one connection at a time: where another one would look the same, this
    /// one leaves under another port.
    fn judge(&self, seen: &Seen, packet: &Packet, world: &World, oracle: impl Fn(Quirks) -> Vec<Verdict>) -> Outcome {
        let mut seen = seen.clone();
        if let Seen::Sent(sent) = &mut seen
            && sent.source == packet.source
            && self.lookalikes.has(packet, (packet.source, packet.sport), (sent.address, sent.port))
        {
            sent.sport = packet.sport;
        }
        check::judge(&seen, packet, world, HERE, oracle)
    }

    /// Sends the answer of whoever got the packet; what is wrong with it.
    fn answer(&mut self, world: &World, packet: &Packet, sent: &Sent) -> Result<Option<String>> {
        let from = match &sent.to {
            Target::Pod(id) => From::Pod(id.clone()),
            Target::Host => From::Host,
            // What comes out of a tunnel cannot be made up for a program: the wire's paths do it.
            Target::Node(_) if world.mode == Mode::Vxlan => return Ok(None),
            Target::Node(_) | Target::Outside => From::Wire,
        };
        let reply = packet.protocol == Protocol::Echo;
        let frame = Frame {
            macs: [[0; 6]; 2],
            source: sent.address,
            destination: sent.source,
            protocol: packet.protocol,
            sport: sent.port,
            dport: sent.sport,
            hops: HOPS,
            tcp_flags: if packet.protocol == Protocol::Tcp { SYN_ACK } else { 0 },
            reply,
        };
        let seen = self.runner.send(&self.site, world, &from, false, frame)?;
        let to = model::back(world, HERE, packet);
        let (address, port, source, sport) = (packet.source, packet.sport, packet.destination, packet.dport);
        // The host's own connection needs no program on its way back, unless it was translated.
        if seen == Seen::Kernel && to == Target::Host && (sent.address, sent.port) == (packet.destination, packet.dport)
        {
            return Ok(None);
        }
        let expected = Seen::Sent(Sent { to, address, port, source, sport });
        Ok((seen != expected).then(|| format!("its answer: {seen:?}, and not {expected:?}; it had gone as {sent:?}")))
    }

    fn book(&mut self, kind: &str, verdict: &Verdict) {
        self.count.passed += 1;
        let word = match verdict {
            Verdict::Dropped(reason) => format!("{reason:?}"),
            Verdict::Kernel => "Kernel".to_owned(),
            Verdict::Delivered { to, source, .. } => {
                let place = match to {
                    Target::Pod(_) => "Pod",
                    Target::Host => "Host",
                    Target::Node(_) => "Node",
                    Target::Outside => "Outside",
                };
                if *source == Source::Kept { place.to_owned() } else { format!("{place} {source:?}") }
            }
        };
        *self.count.verdicts.entry(format!("{kind}: {word}")).or_default() += 1;
    }

    fn book_known(&mut self, known: &'static Known) {
        *self.count.known.entry(known.name).or_default() += 1;
    }
}

impl Ground for Session {
    fn begin(&mut self) -> Result<()> {
        self.standing.clear();
        self.lookalikes.clear();
        self.clients.clear();
        self.is_new = true;
        self.runner.clear()
    }

    fn enter(&mut self, state: &State) -> Result<()> {
        let before = self.site.devices();
        if std::mem::take(&mut self.is_new) {
            self.site.apply_anew(&state.world)
        } else {
            self.site.apply(&state.world)
        }?;
        self.clients.enter(&state.world);
        if let Some(id) = &state.event.replug {
            self.site.plug_anew(id, &state.world)?;
        }
        let after = self.site.devices();
        // Connections end with a pod's device: what its successor has begins anew.
        let anew = |address| is_anew(&before, &after, address);
        self.standing.retain(|standing| !anew(standing.packet.source) && !anew(standing.sent.address));
        if state.event.restart {
            self.site.restart(1, &state.world)?;
            self.runner.renew()?;
        }
        self.runner.let_pass(state.event.ticks)?;
        self.clients.let_pass(state.event.ticks);
        Ok(())
    }

    fn standing(&self) -> usize {
        self.standing.len()
    }

    fn go_on(&mut self, world: &World) -> Result<Option<Failure>> {
        for mut standing in std::mem::take(&mut self.standing) {
            let packet = standing.packet.clone();
            if !self.can_send(&packet.from) {
                continue;
            }
            if may_be_over(&packet, standing.last) {
                *self.count.verdicts.entry("standing: not asked, too late".to_owned()).or_default() += 1;
                continue;
            }
            if let Some(Failure { packet, text }) = Failure::of(&packet, self.again(world, &mut standing)) {
                return Ok(Some(Failure { packet, text: format!("a standing connection: {text}") }));
            }
        }
        Ok(None)
    }

    fn can_send(&self, from: &From) -> bool {
        match from {
            From::Pod(id) => self.site.plugged.contains_key(id),
            From::Host | From::Wire => true,
        }
    }

    fn open(&mut self, world: &World, packet: &Packet) -> Result<Option<String>> {
        let (seen, outcome, unkept) = self.first(world, packet)?;
        let verdict = match outcome {
            Outcome::Right(verdict) => verdict,
            Outcome::Known(known, verdict) => {
                self.book_known(known);
                verdict
            }
            Outcome::Wrong { expected } => return Ok(Some(differ(&expected, &seen))),
        };
        self.book("new", &verdict);
        if unkept.is_some() {
            return Ok(unkept);
        }
        let Seen::Sent(sent) = seen else {
            let (again, outcome, unkept) = self.first(world, packet)?;
            return Ok(match outcome {
                Outcome::Wrong { expected } => Some(format!("at the second try: {}", differ(&expected, &again))),
                Outcome::Right(_) | Outcome::Known(..) => unkept,
            });
        };
        if let Some(text) = self.answer(world, packet, &sent)? {
            return Ok(Some(text));
        }
        let next = self.forward(world, packet, ACK)?;
        if next != Seen::Sent(sent.clone()) {
            return Ok(Some(format!("the next packet: {next:?}, the first: {sent:?}")));
        }
        if self.standing.len() < KEPT {
            let backend = backend_of(packet, sent.address, sent.port);
            self.standing.push(Standing { packet: packet.clone(), backend, sent, last: Instant::now() });
        }
        Ok(None)
    }

    fn count(&mut self) -> &mut Count {
        &mut self.count
    }
}

/// Whether the first packet after a change is the other end's: in every other connection that is no Service's and that goes on as
/// before.
fn answers_first(standing: &Standing, verdicts: &[Verdict]) -> bool {
    let Sent { to, address, port, .. } = &standing.sent;
    let goes_on = |verdict: &Verdict| matches!(verdict, Verdict::Delivered { to: now, address: at, port: by, .. } if (now, at, by) == (to, address, port));
    standing.backend.is_none() && standing.packet.sport.is_multiple_of(2) && verdicts.iter().all(goes_on)
}

fn differ(expected: &[Verdict], seen: &Seen) -> String {
    format!("seen {seen:?}, expected one of {expected:?}")
}

impl Count {
    /// Both together.
    pub(super) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        for (name, count) in &other.known {
            *self.known.entry(name).or_default() += count;
        }
        for (name, count) in &other.verdicts {
            *self.verdicts.entry(name.clone()).or_default() += count;
        }
    }
}
