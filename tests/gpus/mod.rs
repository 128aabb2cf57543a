//! What a communicator of GPUs must do, wherever it runs: `tests/nccl_sim.rs` runs it among simulated GPUs,
//! `tests/nccl.rs` over NCCL.

#![allow(dead_code, unreachable_pub, reason = "one test program uses what another does not")]

pub mod attention;
pub mod failures;
pub mod laws;
pub mod moves;

use std::time::Duration;

use attn::Error;
use attn::cuda::{GpuComm, GpuWorld, Transport};

use crate::kernels::rig::{DeviceOf, Rig};

/// So many ranks; none if there is no such device here.
pub fn world<R: Rig>(ranks: usize) -> Option<GpuWorld<R::Queue>> {
    world_by::<R>(ranks, Transport::Nccl)
}

/// The same, over what is asked for.
pub fn world_by<R: Rig>(ranks: usize, transport: Transport) -> Option<GpuWorld<R::Queue>> {
    let queues: Vec<R::Queue> = (0..ranks).map_while(|rank| R::queue(rank as u64)).collect();
    (!queues.is_empty()).then(|| {
        let world = GpuWorld::on_queues(queues).unwrap();
        world.deadline(Duration::from_secs(60)).transport(transport)
    })
}

/// Runs `body` on so many ranks, and returns what each returns, or the first failure.
pub fn run<R: Rig, T: Send>(
    ranks: usize,
    body: impl Fn(GpuComm<DeviceOf<R>>) -> attn::Result<T> + Sync,
) -> Option<Vec<T>> {
    let world = world::<R>(ranks)?;
    Some(world.run(body).unwrap_or_else(|error: Error| panic!("{ranks} ranks: {error}")))
}

/// Makes a test of each of them, for a rig.
macro_rules! gpu_comm_tests {
    ($rig:ty) => {
        mod attention {
            use super::*;
            each_gpus! { $rig, attention:
                ulysses_is_what_threads_compute,
                a_ring_is_what_threads_compute,
                two_dimensions_are_what_threads_compute,
                edges_are_what_threads_compute,
                uneven_shares_are_what_threads_compute,
            }
        }
        mod laws {
            use super::*;
            each_gpus! { $rig, laws: every_law_is_obeyed, every_law_is_obeyed_directly, faults_are_told_to_everybody }
        }
        mod moves {
            use super::*;
            each_gpus! { $rig, moves:
                boxes_of_every_shape_arrive,
                even_boxes_arrive,
                blocks_go_round_in_order,
                groups_are_split_and_used_by_turns,
            }
        }
        mod failures {
            use super::*;
            each_gpus! { $rig, failures:
                a_rank_that_stays_away_is_named,
                a_rank_that_leaves_is_named,
                a_panic_ends_the_others_waits,
                an_error_while_a_block_is_shown_is_everybodys,
                calls_that_differ_are_told_on_every_rank,
                checked_always_a_call_skipped_is_told,
                boxes_that_do_not_fit_are_told_on_every_rank,
                options_that_differ_are_refused,
                a_call_inside_another_is_refused,
            }
        }
    };
}

/// Makes a test of each named function of `module`.
macro_rules! each_gpus {
    ($rig:ty, $module:ident: $($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                $crate::gpus::$module::$name::<$rig>();
            }
        )*
    };
}
