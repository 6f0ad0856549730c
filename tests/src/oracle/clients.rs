// SPDX-License-Identifier: Apache-2.0

//! Clients that keep their backend (`sessionAffinity: ClientIP`), as their connections showed it: what the world alone does not tell.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use weft_abi::TICK_SHIFT;

use super::{
    model::{self, Backend, Client},
    world::{Packet, World},
};

/// The programs' clock has ticks of about a second, and a client may keep its backend for two of them more.
const SLACK: Duration = Duration::from_secs(3);
/// Of the last so many clients that chose freely, so many chose what they had, or what another one has: each does by chance once in two
/// times at most, and all these once in 10^9 times.
const CHOICES: u32 = 40;
const TELLING: u32 = 38;

/// The backend that a client had last.
#[derive(Clone, Copy, Debug)]
struct Last {
    backend: Backend,
    /// The connection began after this.
    since: Instant,
    /// None has begun after this.
    until: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Clients {
    last: BTreeMap<Client, Last>,
    /// Choices after the time was over, a bit for each: whether it is the backend of before.
    as_before: u64,
    /// First choices of clients: whether it is the backend of the client before it.
    as_others: u64,
    /// How many choices both are of.
    free: [u64; 2],
}

impl Clients {
    /// Begins anew: nobody has been anywhere. What chance has done counts on.
    pub(super) fn clear(&mut self) {
        self.last.clear();
    }

    /// How many choices there were after a client's time was over, and how many first ones of clients after others.
    pub(super) const fn free(&self) -> [u64; 2] {
        self.free
    }

    /// Has so many ticks gone by.
    pub(super) fn let_pass(&mut self, ticks: u32) {
        let time = Duration::from_nanos(u64::from(ticks) << TICK_SHIFT);
        let before = |moment: Instant| moment.checked_sub(time);
        // What would have been before the node's start is over, whatever its time is: that is no test.
        self.last.retain(|_, last| match (before(last.since), before(last.until)) {
            (Some(since), Some(until)) => {
                (last.since, last.until) = (since, until);
                true
            }
            _ => false,
        });
    }

    /// A Service that is gone for a while, or keeps nobody meanwhile, promises nothing of what was before.
    pub(super) fn enter(&mut self, world: &World) {
        self.last.retain(|client, _| model::keeps(world, client));
    }

    /// The backend that a new connection must have: by now its client's time is not over.
    pub(super) fn backend(&self, world: &World, here: &str, packet: &Packet) -> Option<Backend> {
        let (client, time) = model::client(world, here, packet)?;
        let last = self.last.get(&client).filter(|last| last.since.elapsed() < time)?;
        model::may_be_chosen(world, here, packet).contains(&last.backend).then_some(last.backend)
    }

    /// A new connection has this backend, or was refused; the packet was sent after `began`. What is wrong with that.
    pub(super) fn note(
        &mut self,
        world: &World,
        here: &str,
        packet: &Packet,
        backend: Option<Backend>,
        began: Instant,
    ) -> Option<String> {
        let must = self.backend(world, here, packet);
        let (client, time) = model::client(world, here, packet)?;
        let Some(backend) = backend else {
            match self.last.get_mut(&client).filter(|_| must.is_some()) {
                Some(last) => last.until = Instant::now(),
                // It may have chosen another one, which nobody saw.
                None => drop(self.last.remove(&client)),
            }
            return None;
        };
        let other = self.latest_of_others(&client);
        let before = self.last.insert(client, Last { backend, since: began, until: Instant::now() });
        let choices = model::may_be_chosen(world, here, packet);
        let is_a_choice = |last: &Last| choices.len() > 1 && choices.contains(&last.backend);
        let is_over = |last: &Last| began.saturating_duration_since(last.until) > time + SLACK;
        let is_new = before.is_none();
        let (choices_so_far, last, what) = match before {
            Some(last) => {
                (&mut self.as_before, Some(last).filter(is_over), "their last backend after their time was over")
            }
            None => (&mut self.as_others, other, "at first the backend of another client"),
        };
        let is_same = last.filter(is_a_choice)?.backend == backend;
        self.free[usize::from(is_new)] += 1;
        *choices_so_far = (*choices_so_far << 1 | u64::from(is_same)) & ((1 << CHOICES) - 1);
        (choices_so_far.count_ones() >= TELLING).then(|| format!("{TELLING} of {CHOICES} clients had {what}"))
    }

    /// What the last other client of the Service port has.
    fn latest_of_others(&self, client: &Client) -> Option<Last> {
        let with = |address| Client { address, ..client.clone() };
        let others = self.last.iter().filter(|(other, _)| **other == with(other.address) && **other != *client);
        others.map(|(_, last)| *last).max_by_key(|last| last.until)
    }

    /// After a change a connection that went to `before` has this backend, or is refused: it kept what it had, or is a new one to its
    /// Service.
    pub(super) fn note_standing(
        &mut self,
        (world, here, packet): (&World, &str, &Packet),
        before: Option<Backend>,
        now: Option<Backend>,
        began: Instant,
    ) {
        let kept = |before| now.is_none_or(|now| now == before) && model::stands(world, here, packet, before);
        if !before.is_some_and(kept) {
            let _is_no_case = self.note(world, here, packet, now, began);
        }
    }
}

/// The backend of a packet that came to somebody, unless it was not translated.
pub(super) fn backend_of(packet: &Packet, address: IpAddr, port: u16) -> Option<Backend> {
    ((address, port) != (packet.destination, packet.dport)).then_some((address, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::world::{
        Affinity, Endpoint, Exposure, From, Hints, Protocol, Service, ServicePort, Slice, SlicePort,
    };

    const HERE: &str = "node1";

    fn world(affinity: Affinity) -> World {
        let endpoint = |last: u8| Endpoint {
            addresses: vec![[10, 244, 1, last].into()],
            node: None,
            ready: Some(true),
            serving: None,
            terminating: None,
            hints: Hints::default(),
        };
        let port = ServicePort { name: String::new(), protocol: Protocol::Udp, port: 53, node_port: None };
        let service = Service {
            namespace: "red".to_owned(),
            name: "dns".to_owned(),
            addresses: vec![[10, 96, 0, 10].into()],
            ports: vec![port],
            local: false,
            affinity,
            foreign: false,
            created: 0,
            exposure: Exposure::default(),
        };
        let slice = Slice {
            namespace: "red".to_owned(),
            name: "s".to_owned(),
            service: "dns".to_owned(),
            ipv4: true,
            ports: vec![SlicePort { name: None, protocol: Some(Protocol::Udp), port: Some(5353) }],
            endpoints: vec![endpoint(11), endpoint(12)],
        };
        World { services: vec![service], slices: vec![slice], ..World::default() }
    }

    fn packet(client: u8) -> Packet {
        Packet {
            from: From::Host,
            source: [10, 244, 1, client].into(),
            destination: [10, 96, 0, 10].into(),
            protocol: Protocol::Udp,
            sport: 40_000,
            dport: 53,
            wrong_mac: false,
        }
    }

    fn backend(last: u8) -> Backend {
        ([10, 244, 1, last].into(), 5353)
    }

    #[test]
    fn a_client_has_its_last_backend_until_its_time_is_over_or_nobody_keeps_it() {
        let world = |affinity| world(affinity);
        let (keeping, brief) = (world(Affinity::ClientIpFor(60)), world(Affinity::ClientIpFor(0)));
        let mut clients = Clients::default();
        let note = |clients: &mut Clients, found| clients.note(&keeping, HERE, &packet(1), found, Instant::now());
        assert_eq!(note(&mut clients, Some(backend(12))), None);
        let of = |clients: &Clients, world: &World, packet: &Packet| clients.backend(world, HERE, packet);
        assert_eq!(of(&clients, &keeping, &packet(1)), Some(backend(12)));
        assert_eq!(of(&clients, &keeping, &packet(2)), None);
        assert_eq!(of(&clients, &brief, &packet(1)), None, "it is over");
        assert_eq!(note(&mut clients, None), None);
        assert_eq!(of(&clients, &keeping, &packet(1)), Some(backend(12)), "that one refuses it");
        clients.enter(&world(Affinity::None));
        assert_eq!(of(&clients, &keeping, &packet(1)), None);
    }

    #[test]
    fn time_that_is_said_to_pass_counts() {
        let world = world(Affinity::ClientIpFor(60));
        let mut clients = Clients::default();
        assert_eq!(clients.note(&world, HERE, &packet(1), Some(backend(12)), Instant::now()), None);
        for (ticks, last) in [(30, Some(backend(12))), (30, None)] {
            clients.let_pass(ticks);
            assert_eq!(clients.backend(&world, HERE, &packet(1)), last);
        }
    }

    /// No clock but what the connections are said to have begun at.
    #[test]
    fn who_keeps_a_backend_beyond_its_time_is_found_out() {
        let world = world(Affinity::ClientIpFor(1));
        let later = Instant::now() + Duration::from_secs(60);
        let mut clients = Clients::default();
        let mut found = 0;
        for client in 0..TELLING as u8 + 2 {
            let mut note = |backend, began| clients.note(&world, HERE, &packet(client), Some(backend), began);
            let first = 11 + client % 2;
            assert_eq!(note(backend(first), Instant::now()), None);
            // One of the first moves.
            let next = if client == 3 { backend(11) } else { backend(first) };
            found += u32::from(note(next, later).is_some());
        }
        assert_eq!(found, 2, "so many, and one more");
    }

    #[test]
    fn a_backend_that_all_clients_have_is_found_out() {
        let world = world(Affinity::ClientIp);
        let mut clients = Clients::default();
        let mut note = |client| clients.note(&world, HERE, &packet(client), Some(backend(11)), Instant::now());
        let found: Vec<bool> = (0..=TELLING as u8).map(|client| note(client).is_some()).collect();
        assert_eq!(found.iter().position(|found| *found), Some(TELLING as usize), "the first one has nobody before it");
    }
}
