// SPDX-License-Identifier: Apache-2.0
//! Rings of sets of members: what [`RingNode`] says, from members and their weights alone.

use weft_abi::{Algorithm, Member, RING_FAN_OUT, RingNode};
use weft_logic::ring;

use super::DesiredChoice;

/// Arcs of a consistent ring at most, but for one of each member: about a thousand nodes, made in some milliseconds.
const MOST_ARCS: usize = 1 << 15;

/// The end of an arc, and the index of the member that has it.
type Arc = (u32, u32);

impl DesiredChoice {
    /// What the ring of a set of these members takes of [`Room::members`](super::Room::members), at most.
    pub(crate) fn room(self, members: &[Member]) -> usize {
        if !self.needs_ring(members) {
            return 0;
        }
        let arcs = match self.algorithm {
            Algorithm::Consistent => (total(members) as usize).min(MOST_ARCS + members.len()) + 1,
            Algorithm::Random | Algorithm::LeastLoaded => members.len(),
        };
        level_sizes(arcs).iter().sum::<usize>() * RingNode::MEMBERS as usize
    }

    /// The ring of a set of these members; empty where the set has none. The root is the first node, and each level follows the one
    /// above it.
    pub(crate) fn ring(self, members: &[Member]) -> Vec<RingNode> {
        if !self.needs_ring(members) {
            return Vec::new();
        }
        tree(match self.algorithm {
            Algorithm::Consistent => consistent(members, self.seed),
            Algorithm::Random | Algorithm::LeastLoaded => weighted(members),
        })
    }

    /// Whether members are found by more than their index: there are several, and they are unlike or chosen by a hash.
    fn needs_ring(self, members: &[Member]) -> bool {
        members.len() > 1
            && (self.algorithm == Algorithm::Consistent
                || members.windows(2).any(|pair| pair[0].weight != pair[1].weight))
    }
}

/// How many levels a ring of so many nodes has: the reverse of [`level_sizes`].
pub(crate) fn levels(nodes: usize) -> u32 {
    let (mut levels, mut known) = (0, 0);
    let mut of_level = 1;
    while known < nodes {
        (known, of_level, levels) = (known + of_level, of_level * RING_FAN_OUT, levels + 1);
    }
    levels
}

/// How many nodes each level of a tree over so many arcs has, the root's first.
fn level_sizes(arcs: usize) -> Vec<usize> {
    let mut sizes = vec![arcs.div_ceil(RING_FAN_OUT)];
    while let Some(below) = sizes.last().copied().filter(|below| *below > 1) {
        sizes.push(below.div_ceil(RING_FAN_OUT));
    }
    sizes.reverse();
    sizes
}

fn total(members: &[Member]) -> u64 {
    members.iter().map(|member| u64::from(member.weight)).sum()
}

/// One arc for each member, as long as its weight.
fn weighted(members: &[Member]) -> Vec<Arc> {
    let (total, mut sum) = (total(members), 0);
    let ends = members.iter().map(|member| {
        sum += u64::from(member.weight);
        // The last position of which less than `sum` of `total` lies below.
        u32::try_from(((sum << 32).div_ceil(total)).saturating_sub(1)).unwrap_or(u32::MAX)
    });
    ends.zip(0..).collect()
}

/// As many arcs for each member as its weight, that end at its hashes; those beyond the last end belong to whoever has the first. Of
/// two that meet the member counts that comes first. Where there would be more than [`MOST_ARCS`], each has its part of them.
fn consistent(members: &[Member], seed: u64) -> Vec<Arc> {
    let total = total(members);
    let of_member = |(member, index): (&Member, u32)| {
        let Member { addr, port, weight } = *member;
        let part = u64::from(weight) * MOST_ARCS as u64 / total.max(MOST_ARCS as u64);
        let arcs = u32::try_from(part).unwrap_or(u32::MAX).max(1);
        (0..arcs).map(move |arc| (ring::end(seed, &addr, port, arc), index))
    };
    let mut arcs: Vec<Arc> = members.iter().zip(0..).flat_map(of_member).collect();
    arcs.sort_unstable();
    arcs.dedup_by_key(|(end, _)| *end);
    if let (Some((_, first)), Some((last, _))) = (arcs.first().copied(), arcs.last())
        && *last != u32::MAX
    {
        arcs.push((u32::MAX, first));
    }
    arcs
}

/// The search tree over arcs, which end in order.
fn tree(arcs: Vec<Arc>) -> Vec<RingNode> {
    let sizes = level_sizes(arcs.len());
    let mut levels = vec![arcs];
    for _ in 1..sizes.len() {
        let below = levels.last().map_or(&[][..], Vec::as_slice);
        let ends = below.chunks(RING_FAN_OUT).filter_map(|node| node.last()).map(|(end, _)| *end);
        levels.push(ends.zip(0..).collect());
    }
    let mut nodes = Vec::with_capacity(sizes.iter().sum());
    // Leaves lead to members, which are numbered by themselves; other nodes to those after all nodes above them.
    let (mut known, mut depth) = (0, 0);
    for level in levels.iter().rev() {
        (known, depth) = (known + sizes[depth], depth + 1);
        let first = if depth == sizes.len() { 0 } else { u32::try_from(known).unwrap_or(u32::MAX) };
        nodes.extend(level.chunks(RING_FAN_OUT).map(|entries| node(entries, first)));
    }
    nodes
}

/// A node of up to [`RING_FAN_OUT`] entries; its last one stands in the places that are left.
fn node(entries: &[Arc], first: u32) -> RingNode {
    let mut node = RingNode { ends: [u32::MAX; RING_FAN_OUT], next: [0; RING_FAN_OUT] };
    for place in 0..RING_FAN_OUT {
        let (end, next) = entries[place.min(entries.len() - 1)];
        node.next[place] = first + next;
        if place < entries.len() {
            node.ends[place] = end;
        }
    }
    node
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use weft_abi::{Addr, FlowKey6, MAX_RING_LEVELS};

    use super::*;

    fn members(weights: &[u16]) -> Vec<Member> {
        let member = |(weight, last): (&u16, u32)| Member { weight: *weight, ..Member::new(address(last), 80) };
        weights.iter().zip(0..).map(member).collect()
    }

    fn address(last: u32) -> Addr {
        Addr::v4((0x0a00_0000 + last).to_be())
    }

    fn find(nodes: &[RingNode], position: u32) -> u32 {
        let levels = levels(nodes.len());
        assert!((1..=MAX_RING_LEVELS).contains(&levels));
        (0..levels).fold(0, |index, _| ring::next(&nodes[index as usize], position))
    }

    fn choice(algorithm: Algorithm) -> DesiredChoice {
        DesiredChoice { algorithm, seed: 0x5eed }
    }

    #[test]
    fn members_of_one_weight_need_no_ring() {
        for algorithm in [Algorithm::Random, Algorithm::LeastLoaded] {
            assert!(choice(algorithm).ring(&members(&[7; 40])).is_empty());
        }
        assert!(choice(Algorithm::Consistent).ring(&members(&[7])).is_empty(), "nobody else");
        assert!(choice(Algorithm::Consistent).ring(&[]).is_empty());
    }

    #[rstest]
    #[case::two(&[1, 3])]
    #[case::a_full_node(&[&[1; 31][..], &[1000]].concat())]
    #[case::two_levels(&[&[1; 32][..], &[2]].concat())]
    #[case::three_levels(&[&[1; 1024][..], &[500; 40]].concat())]
    fn a_weight_is_the_length_of_an_arc(#[case] weights: &[u16]) {
        let nodes = choice(Algorithm::Random).ring(&members(weights));
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut sum = 0_u64;
        for (weight, index) in weights.iter().zip(0..) {
            // The first position of which `sum` of `total` lies below, and the last one.
            let first = u32::try_from((sum << 32).div_ceil(total)).unwrap();
            sum += u64::from(*weight);
            let last = u32::try_from((sum << 32).div_ceil(total) - 1).unwrap();
            assert_eq!([first, last].map(|position| find(&nodes, position)), [index; 2]);
        }
    }

    #[rstest]
    #[case::two(2)]
    #[case::ten(10)]
    #[case::two_levels_almost_full(320)]
    fn a_position_is_whose_end_comes_next(#[case] count: usize) {
        let members = members(&vec![100; count]);
        let nodes = choice(Algorithm::Consistent).ring(&members);
        let mut ends: Vec<(u32, u32)> = Vec::new();
        for (member, index) in members.iter().zip(0..) {
            ends.extend((0..100).map(|arc| (ring::end(0x5eed, &member.addr, member.port, arc), index)));
        }
        ends.sort_unstable();
        let next = |position: u32| {
            ends.iter().find(|(end, _)| *end >= position).or(ends.first()).map(|(_, index)| *index).unwrap()
        };
        for position in (0..4096_u32).map(|step| step << 20).chain([u32::MAX]).chain(ends.iter().map(|(end, _)| *end)) {
            assert_eq!(find(&nodes, position), next(position), "{position:#x}");
        }
    }

    fn client(port: u16) -> FlowKey6 {
        FlowKey6 { src: address(u32::from(port)), sport: port, protocol: 6, ..FlowKey6::default() }
    }

    /// The addresses of the members that clients have, in the order of the clients.
    fn chosen(members: &[Member]) -> Vec<Addr> {
        let nodes = choice(Algorithm::Consistent).ring(members);
        let of = |port| members[find(&nodes, ring::position(0x5eed, &client(port), false)) as usize].addr;
        (0..20_000).map(of).collect()
    }

    #[test]
    fn who_goes_moves_its_own_clients_and_who_comes_takes_some_of_each() {
        let all = members(&[100; 100]);
        let before = chosen(&all);
        for gone in [0, 50, 99] {
            let mut rest = all.clone();
            let Member { addr, .. } = rest.remove(gone);
            let after = chosen(&rest);
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
            assert!(moved.clone().all(|(before, _)| *before == addr), "a client of another one has moved");
            assert!(moved.count() > 0);
        }
    }

    #[test]
    fn half_a_weight_gets_half_as_many() {
        let mut weights = [100; 20];
        weights[..10].fill(50);
        let all = members(&weights);
        let of_light = chosen(&all).iter().filter(|addr| all[..10].iter().any(|light| light.addr == **addr)).count();
        // 20,000 clients, a third of them: ten members with 50 arcs each are within a fifth of that.
        assert!((5300..8000).contains(&of_light), "{of_light}");
    }

    /// What one change costs is bounded, whoever writes weights.
    #[test]
    fn many_members_share_the_arcs_that_there_are() {
        let members = members(&[&[1000; 200][..], &[10; 200]].concat());
        let arcs = consistent(&members, 1);
        let of = |range: std::ops::Range<u32>| arcs.iter().filter(|(_, member)| range.contains(member)).count();
        assert!(arcs.len() <= MOST_ARCS + 1, "{}", arcs.len());
        assert!(of(0..200) > 98 * of(200..400), "{} and {}", of(0..200), of(200..400));
        assert!((0..400).all(|member| arcs.iter().any(|(_, of)| *of == member)), "everybody has one");
    }

    #[rstest]
    #[case(Algorithm::Random, 2, 150)]
    #[case(Algorithm::Consistent, 1500, 1000)]
    #[case(Algorithm::Random, 1500, 99)]
    #[case(Algorithm::Consistent, 2, 100)]
    #[case(Algorithm::Consistent, 33, 1000)]
    fn rings_take_no_more_than_the_plan_has_room_for(
        #[case] algorithm: Algorithm,
        #[case] count: usize,
        #[case] weight: u16,
    ) {
        let mut weights = vec![weight; count];
        weights[0] = 100;
        let members = members(&weights);
        let nodes = choice(algorithm).ring(&members);
        assert!(
            !nodes.is_empty() && nodes.len() * RingNode::MEMBERS as usize <= choice(algorithm).room(&members),
            "{}",
            nodes.len()
        );
    }
}
