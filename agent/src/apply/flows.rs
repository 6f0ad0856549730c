// SPDX-License-Identifier: Apache-2.0
//! Flow entries that are of no use any more, and what each port has taken of the tables. The programs void entries by
//! themselves; this gives their room back, and counts anew what the programs only add to.

use std::collections::{BTreeMap, BTreeSet};

use nix::time::{ClockId, clock_gettime};
use weft_abi::{
    ACCOUNTS, ALL_PORTS, BackendKey, Config, ConnectionFlags, Deliver, Flow, FlowKey6, FlowState, LED_ON, OPENED,
    Share, TICK_SHIFT, Timeouts, UPLINK,
};
use weft_dataplane::{Error, FlowTable, Maps, TableKey};
use weft_logic::{
    flow::{Lifetime, answer_key},
    masquerade, protocol, share,
};

const TCP: u32 = protocol::TCP as u32;

/// Removes the entries of connections that are over, both directions of each, and counts the shares of ports anew; returns how
/// many entries it removed.
///
/// # Errors
/// The kernel refuses.
pub fn sweep(maps: &Maps) -> Result<usize, Error> {
    let (now, config) = (now_ticks(), maps.config().get(0)?);
    if config.timeouts.brief == 0 {
        // New maps that are not filled yet, beside a table of connections that was carried over.
        return Ok(0);
    }
    let ports = maps.ports().iter().map(|entry| entry.map(|(ifindex, _)| ifindex)).collect::<Result<_, _>>()?;
    // Before the first entry is read: what the programs add from here on is added to what is counted.
    let before: BTreeMap<u32, Share> = maps.shares().iter().collect::<Result<_, _>>()?;
    let loads: BTreeMap<BackendKey, u32> = maps.loads().iter().collect::<Result<_, _>>()?;
    let mut used = Used::new(config, ports);
    used.loads = loads.keys().map(|backend| (*backend, 0)).collect();
    let removed = sweep_table(&maps.flows4(), now, &mut used)? + sweep_table(&maps.flows6(), now, &mut used)?;
    put_shares(maps, &before, &used)?;
    put_loads(maps, &loads, &used)?;
    Ok(removed)
}

/// Removes the entries of packets from or to these ports, and their shares; returns how many entries.
///
/// What masqueraded TCP left under rests until its server has forgotten it (RFC 9293: 2 MSL): another workload's connection from there
/// would be taken for the old one. The entries of its answers stay for that, and lead nowhere: their workload's generation has
/// moved.
///
/// # Errors
/// The kernel refuses.
pub fn forget_ports(maps: &Maps, ports: &BTreeSet<u32>) -> Result<usize, Error> {
    if ports.is_empty() {
        return Ok(0);
    }
    for port in ports {
        maps.shares().remove(port)?;
    }
    let [most4, most6] = maps.config().get(0)?.flow_share.map(|share| if share == 0 { RESTING } else { share / 8 });
    let mut resting = BTreeMap::new();
    let mut stays = |from: u32, protocol: u32, flow: &Flow, most: u32| {
        let leaves = ports.contains(&from) || ports.contains(&flow.way.ifindex);
        !leaves
            || rests(from, protocol, flow) && {
                let of_port: &mut u32 = resting.entry(flow.way.ifindex).or_default();
                *of_port += 1;
                *of_port <= most
            }
    };
    let four = maps.flows4().retain(|key, flow| stays(key.ifindex, key.protocol, flow, most4))?;
    let six = maps.flows6().retain(|key, flow| stays(key.ifindex, key.protocol, flow, most6))?;
    Ok(four + six)
}

/// Connections of one port that rest at most where ports have no shares; else it is an eighth of a share.
const RESTING: u32 = 4096;

/// Whether an entry reserves what masqueraded TCP has left under.
const fn rests(from: u32, protocol: u32, flow: &Flow) -> bool {
    const ANSWER: u16 = ConnectionFlags::REPLY | ConnectionFlags::REWRITE_DST;
    from == UPLINK && protocol == TCP && flow.connection.flags & ANSWER == ANSWER
}

fn sweep_table<K: TableKey>(table: &FlowTable<'_, K>, now: u32, used: &mut Used) -> Result<usize, Error> {
    let find = |key: &FlowKey6| table.get(&K::narrow(key));
    let mut over = Vec::new();
    let timeouts = used.config.timeouts;
    for entry in table {
        let (key, flow) = entry?;
        let key = key.wide();
        if is_over(&key, &flow, find, now, &timeouts)? {
            over.push(key);
        } else {
            used.count(&key, &flow);
        }
    }
    let mut unwanted = Vec::new();
    for key in over {
        // Once more: a packet may have come meanwhile, or another flow in its place.
        let Some(flow) = find(&key)? else { continue };
        if is_over(&key, &flow, find, now_ticks(), &timeouts)? {
            unwanted.push((K::narrow(&key), flow));
        }
    }
    table.remove_unseen(&unwanted)
}

/// Whether the connection of an entry is over, as the programs see it; `find` looks up the other direction.
fn is_over<E>(
    key: &FlowKey6,
    flow: &Flow,
    find: impl Fn(&FlowKey6) -> Result<Option<Flow>, E>,
    now: u32,
    timeouts: &Timeouts,
) -> Result<bool, E> {
    // No connection is over before; an entry may be newer than `now` by a tick.
    if now.saturating_sub(flow.way.last_seen) <= timeouts.brief {
        return Ok(false);
    }
    // Of a connection that was opened again, the entry of the answers before is nobody's.
    let other = find(&answer_key(flow, key.protocol))?.filter(|other| answer_key(other, key.protocol) == *key);
    Ok(Lifetime::of(key.dport, key.protocol, flow, other.as_ref(), timeouts).is_over(now))
}

/// What ports have taken.
struct Used {
    config: Config,
    /// Connections by port, and of all under [`ALL_PORTS`].
    flows: BTreeMap<u32, [u32; ACCOUNTS]>,
    /// Ports of the masquerade range that are kept, by port; see [`Share::kept`].
    kept: BTreeMap<u32, u32>,
    /// Ports that there are.
    ports: BTreeSet<u32>,
    /// Connections of backends that the programs count.
    loads: BTreeMap<BackendKey, u32>,
}

impl Used {
    fn new(config: Config, ports: BTreeSet<u32>) -> Self {
        Self {
            config,
            flows: BTreeMap::from([(ALL_PORTS, [0; ACCOUNTS])]),
            kept: BTreeMap::new(),
            ports,
            loads: BTreeMap::new(),
        }
    }

    /// Counts the connection of an entry: by the one that opened it, or where that is gone and the connection rests, by what is left.
    fn count(&mut self, key: &FlowKey6, flow: &Flow) {
        let answers = flow.connection.flags & ConnectionFlags::REPLY != 0;
        if answers && (!rests(key.ifindex, key.protocol, flow) || self.ports.contains(&flow.way.ifindex)) {
            return;
        }
        let v6 = !key.src.is_v4();
        let all = self.flows.entry(ALL_PORTS).or_default();
        all[OPENED + usize::from(v6)] += 1;
        if answers {
            return;
        }
        self.count_load(flow);
        let forwarded = flow.connection.flags & ConnectionFlags::FORWARDED != 0;
        let host = self.config.host_ifindex;
        let Some((ifindex, account)) = share::account(key.ifindex, &flow.way, v6, host, forwarded) else {
            return;
        };
        if let Some(count) = self.flows.entry(ifindex).or_default().get_mut(account) {
            *count += 1;
        }
        let masqueraded =
            flow.way.deliver == Deliver::Route as u8 && flow.connection.flags & ConnectionFlags::REWRITE_SRC != 0;
        let sport = u16::from_be(flow.connection.sport);
        if masqueraded
            && flow.connection.sport == key.sport
            && masquerade::in_range(&self.config, sport)
            && !masquerade::is_own(&self.config, ifindex, sport)
        {
            *self.kept.entry(ifindex).or_default() += 1;
        }
    }

    /// As the programs do: one that closes counts no more.
    fn count_load(&mut self, flow: &Flow) {
        let Flow { connection, way } = flow;
        if connection.flags & ConnectionFlags::COUNTED == 0 || connection.state == FlowState::Closing as u8 {
            return;
        }
        let backend = BackendKey::new(way.service, connection.dst, connection.dport);
        if let Some(load) = self.loads.get_mut(&backend) {
            *load += 1;
        }
    }

    /// The connections of a backend now: what was counted, and what the programs added and took since they were at `before`.
    fn load(&self, backend: &BackendKey, before: u32, now: u32) -> u32 {
        let counted = self.loads.get(backend).copied().unwrap_or_default();
        let load = counted.wrapping_add(now.wrapping_sub(before));
        if load > i32::MAX as u32 { 0 } else { load }
    }

    /// A port's share as it is now: what was counted, and what the programs added since they were at `before`.
    fn share(&self, ifindex: u32, before: &Share, now: Share) -> Share {
        let counted = self.flows.get(&ifindex).copied().unwrap_or_default();
        let mut share = now;
        for (index, account) in share.flows.iter_mut().enumerate() {
            let (Some(before), Some(counted)) = (before.flows.get(index), counted.get(index)) else { continue };
            account.count = counted.saturating_add(account.count.saturating_sub(before.count));
        }
        let kept = self.kept.get(&ifindex).copied().unwrap_or_default();
        share.kept = kept.saturating_add(now.kept.saturating_sub(before.kept));
        share.refused = 0;
        if ifindex == ALL_PORTS {
            share.ports = u32::try_from(self.flows.len() - 1).unwrap_or(u32::MAX);
        }
        share
    }
}

/// Writes what was counted; ports that are gone lose their shares. A token that a program takes between reading and writing is
/// given back.
fn put_shares(maps: &Maps, before: &BTreeMap<u32, Share>, used: &Used) -> Result<(), Error> {
    let now: BTreeMap<u32, Share> = maps.shares().iter().collect::<Result<_, _>>()?;
    let known: BTreeSet<u32> = now.keys().chain(used.flows.keys()).copied().collect();
    for ifindex in known {
        let Config { host_ifindex, overlay_ifindex, .. } = used.config;
        let is_port = [ALL_PORTS, host_ifindex, overlay_ifindex].contains(&ifindex)
            || ifindex >= LED_ON && used.flows.contains_key(&ifindex)
            || maps.ports().get(&ifindex)?.is_some()
            || maps.devices().get(&ifindex)?.is_some();
        if !is_port {
            maps.shares().remove(&ifindex)?;
            continue;
        }
        let share = now.get(&ifindex).copied().unwrap_or_default();
        if share.refused != 0 {
            tracing::warn!(
                ifindex,
                packets = share.refused,
                "refused packets beyond the share or rate of a workload, a device or a Service"
            );
        }
        let before = before.get(&ifindex).copied().unwrap_or_default();
        maps.shares().insert(&ifindex, &used.share(ifindex, &before, share))?;
    }
    Ok(())
}

/// Writes the connections of backends; those that have none lose their entry. One that opens or closes between reading and writing is
/// counted by the next sweep.
fn put_loads(maps: &Maps, before: &BTreeMap<BackendKey, u32>, used: &Used) -> Result<(), Error> {
    let now: BTreeMap<BackendKey, u32> = maps.loads().iter().collect::<Result<_, _>>()?;
    for (backend, now) in now {
        // What came meanwhile is right.
        let Some(before) = before.get(&backend) else { continue };
        match used.load(&backend, *before, now) {
            0 => drop(maps.loads().remove(&backend)?),
            load if load != now => maps.loads().insert(&backend, &load)?,
            _ => {}
        }
    }
    Ok(())
}

/// The programs' clock: `CLOCK_MONOTONIC` in units of 2^[`TICK_SHIFT`] ns.
pub(crate) fn now_ticks() -> u32 {
    let nanoseconds = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    });
    // Cut to 32 bits as the programs do; that is 146 years.
    u32::try_from(nanoseconds >> TICK_SHIFT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeSet, HashMap},
        convert::Infallible,
    };

    use weft_abi::{
        ALL_PORTS, Addr, BackendKey, Config, Connection, ConnectionFlags, Deliver, Flow, FlowAccount, FlowKey6,
        FlowState, OPENED, RECEIVED, Share, Timeouts, Way,
    };
    use weft_logic::flow::answer_key;

    use super::{Used, is_over};

    const HOST: u32 = 3;
    const PORT: u32 = 7;
    const UPLINK: u32 = 9;
    const TIMEOUTS: Timeouts = Timeouts::DEFAULT;

    /// A UDP connection of `PORT` to the outside, as its entries: last packet of each direction, and how many.
    fn connection(forward: (u32, u64), reverse: (u32, u64)) -> HashMap<FlowKey6, Flow> {
        let key = FlowKey6 {
            ifindex: PORT,
            src: Addr::v4(1),
            dst: Addr::v4(2),
            sport: 5_u16.to_be(),
            dport: 9999_u16.to_be(),
            protocol: 17,
        };
        let there = Flow {
            connection: Connection {
                flags: ConnectionFlags::REWRITE_SRC,
                src: Addr::v4(3),
                sport: 6_u16.to_be(),
                dst: key.dst,
                dport: key.dport,
                packets: forward.1,
                ..Connection::default()
            },
            way: Way { deliver: Deliver::Route as u8, ifindex: UPLINK, last_seen: forward.0, ..Way::default() },
        };
        let back = Flow {
            connection: Connection {
                flags: ConnectionFlags::REPLY | ConnectionFlags::REWRITE_DST,
                src: key.dst,
                sport: key.dport,
                dst: key.src,
                dport: key.sport,
                packets: reverse.1,
                ..Connection::default()
            },
            way: Way { deliver: Deliver::Peer as u8, ifindex: PORT, last_seen: reverse.0, ..Way::default() },
        };
        HashMap::from([(key, there), (answer_key(&there, 17), back)])
    }

    fn over(entries: &HashMap<FlowKey6, Flow>, now: u32) -> Vec<bool> {
        let find = |key: &FlowKey6| Ok::<_, Infallible>(entries.get(key).copied());
        let is_over = |(key, flow): (&FlowKey6, &Flow)| {
            let Ok(is_over) = is_over(key, flow, find, now, &TIMEOUTS);
            is_over
        };
        entries.iter().map(is_over).collect()
    }

    #[test]
    fn a_silent_direction_lives_as_long_as_the_other_one() {
        let entries = connection((1000, 500), (1, 1));
        assert_eq!(over(&entries, 1000 + TIMEOUTS.datagram), [false, false]);
        assert_eq!(over(&entries, 1001 + TIMEOUTS.datagram), [true, true]);
        let entries = connection((1, 500), (1000, 1));
        assert_eq!(over(&entries, 1000 + TIMEOUTS.datagram), [false, false]);
    }

    #[test]
    fn what_nobody_answered_is_over_soon() {
        let entries = connection((1000, 500), (1000, 0));
        assert_eq!(over(&entries, 1000 + TIMEOUTS.unanswered), [false, false]);
        assert_eq!(over(&entries, 1001 + TIMEOUTS.unanswered), [true, true]);
    }

    #[test]
    fn a_connection_counts_once_for_who_opened_it() {
        let mut used =
            Used::new(Config { host_ifindex: HOST, masquerade_count: 100, ..Config::default() }, [PORT].into());
        for (key, flow) in connection((1, 1), (1, 1)) {
            used.count(&key, &flow);
        }
        let received = FlowKey6 { ifindex: weft_abi::UPLINK, ..FlowKey6::default() };
        let to_port = Flow { way: Way { ifindex: PORT, ..Way::default() }, ..Flow::default() };
        used.count(&received, &to_port);
        used.count(&FlowKey6 { ifindex: HOST, ..received }, &to_port);
        let mut counted = [0; 4];
        counted[OPENED] = 1;
        counted[RECEIVED + 1] = 1;
        assert_eq!(used.flows[&PORT], counted);
        assert_eq!(used.flows[&ALL_PORTS], [1, 2, 0, 0], "the host's too");
        assert!(!used.flows.contains_key(&HOST), "it opened its own");
        used.count(&received, &Flow { way: Way { ifindex: HOST, ..Way::default() }, ..Flow::default() });
        assert_eq!(used.flows[&HOST], [0, 0, 0, 1], "what others opened towards it");
    }

    #[test]
    fn backends_have_the_connections_that_stand_and_those_that_came_meanwhile() {
        let backend = BackendKey::new(5, Addr::v4(2), 80);
        let flow = |flags, state: FlowState| Flow {
            connection: Connection { flags, dst: backend.addr, dport: 80, state: state as u8, ..Connection::default() },
            way: Way { service: 5, ..Way::default() },
        };
        let mut used = Used::new(Config::default(), BTreeSet::new());
        used.loads = [(backend, 0)].into();
        let counted = ConnectionFlags::COUNTED | ConnectionFlags::REWRITE_DST;
        for (flags, state) in [
            (counted, FlowState::New),
            (counted, FlowState::Established),
            (counted, FlowState::Closing),
            (ConnectionFlags::REWRITE_DST, FlowState::Established),
        ] {
            used.count(&FlowKey6::default(), &flow(flags, state));
        }
        assert_eq!(used.loads, [(backend, 2)].into());
        assert_eq!(used.load(&backend, 7, 10), 5, "three came meanwhile");
        assert_eq!(used.load(&backend, 7, 6), 1, "one went");
        assert_eq!(used.load(&backend, 7, 3), 0, "more went than there are");
    }

    #[test]
    fn what_the_programs_added_meanwhile_is_not_lost() {
        let mut used = Used::new(Config::default(), BTreeSet::new());
        used.flows.insert(PORT, [10, 0, 0, 0]);
        let share = |count| {
            let flows = [FlowAccount { count, ..FlowAccount::default() }; 4];
            Share { flows, refused: 5, flows_full_at: 77, ..Share::default() }
        };
        let written = used.share(PORT, &share(100), share(103));
        assert_eq!(written.flows.map(|account| account.count), [13, 3, 3, 3]);
        assert_eq!((written.refused, written.flows_full_at), (0, 77));
    }
}
