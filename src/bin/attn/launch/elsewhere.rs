//! What `attn launch` is where there are no process groups and signals: refused.

use crate::cli::{LaunchArgs, RankArgs};
use crate::failure::Failure;

pub(crate) fn run(_: &LaunchArgs) -> Result<(), Failure> {
    refused()
}

pub(crate) fn keep() -> Result<(), Failure> {
    refused()
}

pub(crate) fn become_rank(_: &RankArgs) -> Result<(), Failure> {
    refused()
}

fn refused() -> Result<(), Failure> {
    Err(Failure::System(String::from(
        "`attn launch` is for Unix: elsewhere start the ranks by another launcher, or set ATTN_RANK, ATTN_WORLD_SIZE, \
         ATTN_MASTER_ADDR, ATTN_MASTER_PORT and ATTN_TOKEN for each yourself",
    )))
}
