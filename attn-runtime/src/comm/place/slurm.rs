//! What Slurm says in ways of its own: lists of hosts, and numbers of tasks for runs of them.

use super::launcher::SLURM;
use super::variables::{Number, Variables};
use crate::error::{Error, Result};

/// What half of a rank's variables may mean.
pub(super) const NOT_A_RANK: &str = " (the script of `sbatch` and the shell of `salloc` have only some of a rank's variables: ranks are what `srun` starts)";

/// That this process was started by `srun`, if there are to be several. The script of `sbatch` is told that it is number 0
/// of all tasks, although it runs once.
pub(super) fn check_is_a_rank(variables: &Variables<'_>) -> Result<()> {
    let in_step = ["SLURM_STEP_ID", "SLURM_STEPID"].into_iter().any(|name| variables.has(name));
    let alone = variables.number(&SLURM, SLURM.size)?.is_none_or(|size| size.value == 1);
    if in_step || alone {
        return Ok(());
    }
    Err(Error::Environment(
        "`SLURM_STEP_ID` is missing, although `SLURM_PROCID` and `SLURM_NTASKS` are set: this process is the script of a batch \
         job, which runs once, and none of its tasks. Start the ranks in it with `srun PROGRAM` (or `mpirun`, or \
         `attn launch`)"
            .into(),
    ))
}

/// The first host of the job step, or of the job.
pub(super) fn first_host(variables: &Variables<'_>) -> Result<Option<String>> {
    for variable in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"] {
        if let Some(list) = variables.text(&SLURM, variable)? {
            let wrong =
                || SLURM.wrong(variable, &list, "it must be a list of hosts such as `node[01-04,7],x1`");
            return first_of(&list).map(Some).ok_or_else(wrong);
        }
    }
    Ok(None)
}

/// The first of a list of hosts: `node[01-04,7],x1` is node01, node02, node03, node04, node7, x1.
pub(super) fn first_of(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    while let Some(end) = rest.find(['[', ',']) {
        host.push_str(&rest[..end]);
        if rest[end..].starts_with(',') {
            return named(host);
        }
        let (numbers, after) = rest[end + 1..].split_once(']')?;
        let first: &str = numbers.split(['-', ',']).next()?;
        if first.is_empty() || !first.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        host.push_str(first);
        rest = after;
    }
    host.push_str(rest);
    named(host)
}

/// A host's name, if it can be one.
fn named(host: String) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':') || !c.is_ascii();
    (!host.is_empty() && host.chars().all(|c| good(c) && !c.is_whitespace())).then_some(host)
}

/// How many tasks are on this host.
pub(super) fn local_size(variables: &Variables<'_>, size: &Number) -> Result<Option<Number>> {
    let number = |value, variable| Some(Number { launcher: &SLURM, variable, value });
    for variable in ["SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"] {
        if let (Some(list), Some(node)) =
            (variables.text(&SLURM, variable)?, variables.number(&SLURM, "SLURM_NODEID")?)
        {
            let why = format!(
                "it must say how many tasks each host has, such as `2(x3),1`, also that of number {} (`SLURM_NODEID`)",
                node.value
            );
            let tasks = tasks_of(&list, node.value).ok_or_else(|| SLURM.wrong(variable, &list, &why))?;
            return Ok(number(tasks, variable));
        }
    }
    let one = first_host_is_all(variables)?;
    Ok(one.then_some(number(size.value, SLURM.size)).flatten())
}

/// Whether the list of hosts has one only.
fn first_host_is_all(variables: &Variables<'_>) -> Result<bool> {
    for variable in ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"] {
        if let Some(list) = variables.text(&SLURM, variable)? {
            return Ok(!list.contains([',', '[']));
        }
    }
    Ok(true)
}

/// The number for one host of a list such as `2(x3),1`: 2, 2, 2, 1.
pub(super) fn tasks_of(list: &str, node: usize) -> Option<usize> {
    let mut left = node;
    for run in list.split(',') {
        let (tasks, hosts) = match run.trim().split_once("(x") {
            None => (run.trim(), 1),
            Some((tasks, hosts)) => (tasks, hosts.strip_suffix(')')?.parse().ok()?),
        };
        if left < hosts {
            return tasks.parse().ok();
        }
        left -= hosts;
    }
    None
}
