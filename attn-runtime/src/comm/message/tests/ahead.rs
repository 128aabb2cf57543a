//! How far ranks run ahead of each other.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::{Comm, SIGNATURE, turn_with};
use crate::comm::message::credit::{Answers, Credit};
use crate::comm::message::exchange::{MESSAGE, WINDOW};
use crate::comm::message::note::{Kind, Note};
use crate::comm::message::rotate::AHEAD;
use crate::comm::message::{Bytes, ChannelLink, Event, Head, Link};
use crate::comm::{Call, Communicator, ExchangePlan, Rendezvous, Transfer};
use crate::device::cpu::CpuQueue;
use crate::device::{Arena, Cpu};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// Longer than anything takes here.
const DEADLINE: Duration = Duration::from_secs(20);

/// Bodies that go from one rank to one other.
#[derive(Default)]
struct Way {
    bodies: Vec<Weak<Bytes>>,
    /// The most bytes that were alive at once.
    most: usize,
}

/// The ways between the ranks of a world, by sender and receiver.
type Ways = Arc<Vec<Vec<Mutex<Way>>>>;

fn ways(ranks: usize) -> Ways {
    Arc::new((0..ranks).map(|_| (0..ranks).map(|_| Mutex::default()).collect()).collect())
}

fn most(ways: &Ways, from: usize, to: usize) -> usize {
    ways[from][to].lock().unwrap().most
}

/// A link that counts what it was given and what nobody has let go of yet: on its way, or waiting to be asked for.
struct Counting {
    link: ChannelLink,
    ways: Ways,
}

impl Link for Counting {
    const NAME: &'static str = "counted channels";

    fn rank(&self) -> usize {
        self.link.rank()
    }

    fn size(&self) -> usize {
        self.link.size()
    }

    fn send(&mut self, to: usize, head: Head, body: Option<Arc<Bytes>>) -> Result<()> {
        // What goes on to a further rank is memory of its own there, as it is behind any link between processes.
        let body = body.map(|body| Bytes::copied(&body).map(Arc::new)).transpose()?;
        if let Some(body) = &body {
            let mut way = self.ways[self.link.rank()][to].lock().unwrap();
            way.bodies.retain(|body| body.strong_count() > 0);
            way.bodies.push(Arc::downgrade(body));
            let alive = way.bodies.iter().filter_map(Weak::upgrade).map(|body| body.len()).sum();
            way.most = way.most.max(alive);
        }
        self.link.send(to, head, body)
    }

    fn receive(&mut self, until: Instant) -> Result<Option<Event>> {
        self.link.receive(until)
    }

    fn close(&mut self, well: bool, grace: Duration) {
        self.link.close(well, grace);
    }
}

/// Runs `body` on every rank of a world of hosts, and at last looks whether anything has come that nobody asked for.
fn world(
    hosts: &[&str],
    ways: &Ways,
    body: impl Fn(&Comm<Counting>) -> Result<()> + Sync,
) -> Vec<Result<()>> {
    std::thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = ChannelLink::world(hosts.len())
            .into_iter()
            .zip(hosts)
            .map(|(link, host)| {
                let link = Counting { link, ways: Arc::clone(ways) };
                scope.spawn(move || {
                    let comm = Comm::on_host(link, CpuQueue::new(1)?, DEADLINE, host.as_bytes())?;
                    comm.run(|comm| {
                        body(&comm)?;
                        // Behind all that the others have sent before.
                        comm.gather("the end", &[])?;
                        match comm.world().unread() {
                            0 => Ok(()),
                            letters => Err(Error::Plan(format!("{letters} letters have come too late"))),
                        }
                    })
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// An exchange of as many positions from each rank to each as `rows` says, by sender and receiver.
fn exchange<L: Link>(comm: &Comm<L>, rows: &[Vec<usize>]) -> Result<()> {
    let (me, size) = (comm.rank(), comm.size());
    let element = |from: usize, to: usize, row: usize| (from * 1000 + to * 100 + row % 97) as f32;
    let mut plan = ExchangePlan::default();
    let (mut sent, mut received) = (0, 0);
    for (peer, theirs) in rows.iter().enumerate() {
        let (out, into) = (rows[me][peer], theirs[me]);
        plan.send(peer, [0, sent, 0, 0], [1, out, 1, 8]);
        plan.receive(peer, [0, received, 0, 0], [1, into, 1, 8]);
        (sent, received) = (sent + out, received + into);
    }
    let mut from = Tensor::from_fn([1, sent, 1, 8], |_| 0.0)?;
    let all = (0..size).flat_map(|to| (0..rows[me][to]).map(move |row| element(me, to, row)));
    for (part, element) in from.as_mut_slice().chunks_mut(8).zip(all) {
        part.fill(element);
    }
    let mut to = Tensor::from_fn([1, received, 1, 8], |_| -1.0)?;
    let mut arena = Arena::<Cpu>::default();
    let queue = comm.queue()?;
    let transfer = Transfer::new(&plan, from.view(), to.view_mut())?;
    comm.exchange(arena.open(&queue)?, &SIGNATURE, &mut [transfer])?;
    let all = (0..size).flat_map(|from| (0..rows[from][me]).map(move |row| element(from, me, row)));
    for (part, element) in to.as_slice().chunks(8).zip(all) {
        assert_eq!(part, [element; 8]);
    }
    Ok(())
}

/// The bytes of a block of [`turn`], keys and values.
fn block(length: usize) -> usize {
    (length * 10 * size_of::<f32>()).next_multiple_of(64) + length * 10 * size_of::<f32>()
}

/// Sleeps until so much has been on its way to a rank from another at once, and then as long as more would take to come.
fn wait_for(ways: &Ways, from: usize, to: usize, bytes: usize) {
    let started = Instant::now();
    while most(ways, from, to) < bytes && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn an_exchange_waits_for_a_slow_rank_with_no_more_than_the_window_on_its_way() {
    let (ranks, slow) = (4, 2);
    let ways = ways(ranks);
    let full = WINDOW as usize * MESSAGE;
    let rows = vec![vec![3 * full / 32; ranks]; ranks];
    let outcomes = world(&["", "a", "", "a"], &ways, |comm| {
        if comm.rank() == slow {
            for from in [3, 0, 1] {
                wait_for(&ways, from, slow, full);
            }
        }
        exchange(comm, &rows)
    });
    assert_eq!(outcomes, vec![Ok(()); ranks]);
    for (from, to) in (0..ranks).flat_map(|from| (0..ranks).map(move |to| (from, to))) {
        let most = most(&ways, from, to);
        // What is announced stands before the first message.
        assert!(most < full + MESSAGE, "{most} bytes on their way from rank {from} to rank {to}");
        assert!(to != slow || from == slow || most >= full, "{most} bytes from rank {from}");
    }
}

#[test]
fn a_ring_runs_two_blocks_ahead_of_a_slow_rank() {
    let (ranks, length) = (6, 100);
    for hosts in [["", "", "", "", "", ""], ["a", "b", "a", "b", "a", "b"], ["", "a", "", "", "a", ""]] {
        let ways = ways(ranks);
        let full = AHEAD as usize * block(length);
        let outcomes = world(&hosts, &ways, |comm| {
            let mut first = comm.rank() == 3;
            turn_with(comm, &[length; 6], || {
                if core::mem::take(&mut first) {
                    wait_for(&ways, 2, 3, full);
                }
            })
        });
        assert_eq!(outcomes, vec![Ok(()); ranks], "{hosts:?}");
        for from in 0..ranks {
            let most = most(&ways, from, (from + 1) % ranks);
            assert!(most <= full, "{hosts:?}: {most} bytes ahead of the rank after {from}");
            assert!(from != 2 || most == full, "{hosts:?}: {most} bytes to the slow rank");
        }
    }
}

/// The outcome of a rank that sends many positions to one that has called and answered so often, and does as `peer` says from
/// then on.
fn send_to(early: usize, peer: impl FnOnce(&mut ChannelLink) + Send) -> Result<()> {
    let rows = 3 * WINDOW as usize * MESSAGE / 32;
    let mut links = ChannelLink::world(2);
    let (mut other, link) = (links.remove(1), links.remove(0));
    let note = |kind, numbers| Note { kind, group: 1, sequence: 1, numbers }.head();
    // It sends an empty box, and expects a long one.
    let mut body = Bytes::zeroed(128).unwrap();
    for (to, number) in body.as_mut_slice().chunks_mut(8).zip([0, 4, 1, 0, 1, 8, 0, 4, 1, rows as u64, 1, 8])
    {
        to.copy_from_slice(&u64::to_le_bytes(number));
    }
    let call = Call::Exchange(SIGNATURE, 1).fingerprint();
    other.send(0, note(Kind::Call, [call, 1, 1, 0, 0]), Some(Arc::new(body))).unwrap();
    (0..early).for_each(|_| answer(&mut other));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            peer(&mut other);
            // Until the rank has ended.
            while !matches!(other.receive(late()).unwrap(), None | Some(Event::Lost { .. })) {}
        });
        let comm = Comm::by_link(link, CpuQueue::new(1)?, Duration::from_millis(300))?;
        comm.run(|comm| exchange(&comm, &[vec![0, rows], vec![0, 0]]))
    })
}

fn late() -> Instant {
    Instant::now() + DEADLINE
}

/// Waits for so many messages of tensors.
fn take(link: &mut ChannelLink, messages: u64) {
    for _ in 0..messages {
        let event = link.receive(late()).unwrap();
        assert!(matches!(event, Some(Event::Message { body: Some(_), .. })), "{event:?}");
    }
}

fn answer(link: &mut ChannelLink) {
    let note = Note { kind: Kind::Taken, group: 1, sequence: 1, numbers: [0; 5] };
    link.send(0, note.head(), None).unwrap();
}

#[test]
fn who_does_not_answer_is_sent_no_more_and_named_at_the_deadline() {
    let outcome = send_to(0, |link| {
        take(link, WINDOW);
        (0..3).for_each(|_| answer(link));
        take(link, 3);
        let event = link.receive(late()).unwrap();
        let Some(Event::Message { head, .. }) = event else { panic!("{event:?}") };
        assert!(head.tells_of_an_end());
    });
    assert!(matches!(&outcome, Err(Error::Deadline { missing, .. }) if *missing == [1]), "{outcome:?}");
}

#[test]
fn an_answer_to_nothing_is_none() {
    // The rank looks at what has come when two of its messages are on their way.
    let outcome = send_to(3, |_| ());
    assert!(matches!(outcome, Err(Error::RankFailed { rank: 1, .. })), "{outcome:?}");
}

#[test]
fn who_leaves_without_an_answer_is_named() {
    let outcome = send_to(0, |link| {
        take(link, WINDOW);
        link.send(0, Note::of_the_world(Kind::Farewell).head(), None).unwrap();
    });
    assert!(matches!(outcome, Err(Error::RankLeft { rank: 1, .. })), "{outcome:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn whatever_goes_where_arrives_and_nothing_comes_too_late(
        hosts in prop::collection::vec(prop::sample::select(&["", "a", "b"][..]), 2..6),
        rows in prop::array::uniform5(prop::array::uniform5(prop_oneof![0_usize..4, 0_usize..5000])),
        lengths in prop::array::uniform5(prop_oneof![0_usize..3, 0_usize..300]),
        late in 0_usize..5,
    ) {
        let ranks = hosts.len();
        let (rows, lengths) = (rows.map(|row| row[..ranks].to_vec()), &lengths[..ranks]);
        let ways = ways(ranks);
        let outcomes = world(&hosts, &ways, |comm| {
            for seq in 0..2 {
                if comm.rank() == late {
                    std::thread::sleep(Duration::from_millis(2));
                }
                exchange(comm, &rows[..ranks])?;
                turn_with(comm, lengths, || {
                    if comm.rank() == (late + seq) % ranks {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                })?;
            }
            Ok(())
        });
        prop_assert_eq!(outcomes, vec![Ok(()); ranks], "{:?}", hosts);
    }
}

/// A rank of a ring, as far as it waits: which of the blocks of the ring it receives and passes on, in the order of its hops.
struct Member {
    steps: Vec<Step>,
    done: usize,
    credit: Credit,
    answers: Answers,
    come: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Receive,
    Pass,
    Answer,
}

/// Whether a ring comes to its end in which some ranks look at the blocks of some others, and nobody runs further ahead.
fn ends(size: usize, ahead: u64, sees: impl Fn(usize, usize) -> bool) -> bool {
    let mut members: Vec<Member> = (0..size)
        .map(|me| {
            let (mut steps, next) = (Vec::new(), (me + 1) % size);
            for hop in 0..size {
                let owner = (me + size - hop) % size;
                let receives = hop > 0 && !sees(owner, me);
                // Parts go on as they come, and the answer is to the whole.
                steps.extend(receives.then_some(Step::Receive));
                steps.extend((hop + 1 < size && !sees(owner, next)).then_some(Step::Pass));
                steps.extend(receives.then_some(Step::Answer));
            }
            let received = steps.iter().filter(|step| **step == Step::Receive).count();
            let answers = Answers::new(ahead, received as u64);
            Member { steps, done: 0, credit: Credit::new(ahead), answers, come: 0 }
        })
        .collect();
    // No step takes from another rank what it waits for, so that any order comes to the same end.
    let mut stuck = 0;
    for me in (0..size).cycle() {
        let (next, previous) = ((me + 1) % size, (me + size - 1) % size);
        let goes = match members[me].steps.get(members[me].done) {
            None => false,
            Some(Step::Receive) => members[me].come > 0,
            Some(Step::Pass) => members[me].credit.is_left(),
            Some(Step::Answer) => true,
        };
        if !goes {
            stuck += 1;
            if stuck == size {
                break;
            }
            continue;
        }
        stuck = 0;
        let step = members[me].steps[members[me].done];
        match step {
            Step::Receive => members[me].come -= 1,
            Step::Pass => {
                members[me].credit.spend();
                members[next].come += 1;
            }
            Step::Answer if members[me].answers.took() => assert!(members[previous].credit.answered()),
            Step::Answer => {}
        }
        members[me].done += 1;
    }
    members.iter().all(|member| member.done == member.steps.len() && member.come == 0)
}

#[test]
fn no_ring_waits_for_itself() {
    for size in 2..6 {
        let pairs: Vec<_> = (0..size).flat_map(|one| (0..one).map(move |other| (one, other))).collect();
        // Who shares memory with whom, and who has any to show.
        for (shared, shown) in
            (0..1_u32 << pairs.len()).flat_map(|shared| (0..1_u32 << size).map(move |shown| (shared, shown)))
        {
            let sees = |owner: usize, member: usize| {
                let pair = (owner.max(member), owner.min(member));
                let bit = pairs.iter().position(|other| *other == pair);
                shown >> owner & 1 == 1 && bit.is_some_and(|bit| shared >> bit & 1 == 1)
            };
            assert!(ends(size, AHEAD, sees), "{size} ranks, {shared:b} share, {shown:b} show");
        }
    }
    // The model can see a wait without end.
    assert!(!ends(2, 0, |_, _| false));
}
