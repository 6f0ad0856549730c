// SPDX-License-Identifier: Apache-2.0
//! `sessionAffinity: ClientIP`: a client of a Service port gets the backend of its last new connection, as long as that may be chosen
//! and is not too long ago.

use weft_abi::{Affinity, AffinityKey, BackendFlags, BackendKey, Balancer, Clients};

use crate::{
    Tables,
    walk::{Decision, Question},
};

/// Whether the client's last backend is one of the set for such `clients`, and not too long ago: it is `target` then. In any case
/// [`remembered`] is to be kept once the connection stands. `balancer` keeps clients.
#[inline(always)]
pub fn recall<T: Tables>(
    tables: &T,
    question: &Question,
    (service, clients): (u32, Clients),
    balancer: &Balancer,
    decision: &mut Decision,
) -> bool {
    decision.affinity = AffinityKey::new(balancer.name, decision.net, question.key.src);
    decision.keeps_client = 1;
    let Some(last) = tables.affinity(&decision.affinity) else { return false };
    if is_over(question.now, last.last, balancer.affinity) {
        return false;
    }
    let backend = BackendKey::new(service, last.addr, last.port);
    if tables.backend(&backend) & BackendFlags::of_clients(clients) == 0 {
        return false;
    }
    (decision.target, decision.target_port) = (last.addr, last.port);
    true
}

/// Whether more than `most` ticks went by since `last`. Another CPU may be a tick ahead: that is no time at all.
#[inline(always)]
const fn is_over(now: u32, last: u32, most: u32) -> bool {
    let passed = now.wrapping_sub(last);
    passed > most && passed <= u32::MAX / 2
}

/// What is kept for `decision.affinity`, of a decision that [`Decision::keeps_client`].
#[inline(always)]
#[must_use]
pub const fn remembered(question: &Question, decision: &Decision) -> Affinity {
    Affinity { addr: decision.target, port: decision.target_port, pad: 0, last: question.now }
}

#[cfg(test)]
mod tests {
    use super::is_over;

    #[test]
    fn a_client_keeps_its_backend_up_to_the_last_tick_and_beside_a_cpu_that_is_ahead() {
        let over = |now, last| is_over(now, last, 10);
        assert_eq!([over(100, 100), over(110, 100), over(111, 100)], [false, false, true]);
        assert_eq!([over(99, 100), over(u32::MAX, 0), over(0, u32::MAX)], [false; 3]);
        assert!(over(5, u32::MAX - 5), "the clock's numbers begin again");
    }
}
