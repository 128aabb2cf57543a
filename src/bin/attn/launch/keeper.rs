//! What stands on each host between the launcher and the ranks.

use std::ffi::OsStr;
use std::io::{self, Read, Stdout, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, sleep};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::frame::{End, GREETING, Message, Order, Report, Stream};
use super::{line, signals};
use crate::failure::Failure;

/// How long ranks have between SIGTERM and SIGKILL when the launcher is gone.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long what a rank wrote last may take to come through, besides the time that the launcher takes to read it. Longer
/// only if something that it started still holds its output.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often to look whether the launcher has still to read.
const LOOK: Duration = Duration::from_millis(20);

/// Serves a launcher until all ranks have ended.
///
/// # Errors
/// If what comes on stdin are no orders, or the system refuses.
pub(crate) fn keep() -> Result<(), Failure> {
    let refused = |error: io::Error| Failure::System(format!("the keeper of a host: {error}"));
    // A keeper ends when its launcher does, whatever signals go to both.
    for signal in signals::PASSED_ON {
        signal_hook::flag::register(signal.as_raw(), Arc::default()).map_err(refused)?;
    }
    let mut orders = io::stdin().lock();
    let launcher = Arc::new(Launcher::greet().map_err(refused)?);
    let mut job = Job::default();
    loop {
        match Order::receive(&mut orders).map_err(refused)? {
            // The launcher has ended before there were ranks.
            None => return Ok(()),
            Some(Order::Start) => break,
            Some(order) => job.add(order),
        }
    }
    drop(orders);

    // All are started from this thread, which is the parent for whose death they watch, and goes last.
    let ranks: Arc<[Arc<Rank>]> = (0..job.ranks.len()).map(|index| Arc::new(job.start(index))).collect();
    let (told, ends) = channel::<()>();
    for rank in ranks.iter() {
        let name = format!("rank {}", rank.number);
        let (rank, launcher, told) = (Arc::clone(rank), Arc::clone(&launcher), told.clone());
        let watch = move || {
            rank.watch(&launcher);
            drop(told);
        };
        Builder::new().name(name).spawn(watch).map_err(refused)?;
    }
    drop(told);
    let obeyed = Arc::clone(&ranks);
    let closed = Arc::clone(&launcher);
    Builder::new().name(String::from("orders")).spawn(move || obey(&obeyed, &closed)).map_err(refused)?;
    // Nothing is ever sent: it ends when the last sender goes.
    let _ = ends.recv();
    Ok(())
}

/// Does what the launcher says while there are ranks; when it has ended, ends them.
fn obey(ranks: &[Arc<Rank>], launcher: &Launcher) {
    let mut orders = io::stdin().lock();
    loop {
        match Order::receive(&mut orders) {
            Ok(Some(Order::Signal(number))) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    ranks.iter().for_each(|rank| rank.signal(signal));
                }
            }
            Ok(Some(Order::Close(stream))) => launcher.close(stream),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => break,
        }
    }
    ranks.iter().for_each(|rank| rank.signal(Signal::TERM));
    sleep(PATIENCE);
    ranks.iter().for_each(|rank| rank.signal(Signal::KILL));
}

/// The way back to the launcher.
struct Launcher {
    stdout: Mutex<Stdout>,
    /// Outputs that nobody reads any more.
    closed: [AtomicBool; 2],
}

impl Launcher {
    fn greet() -> io::Result<Self> {
        let mut stdout = io::stdout();
        stdout.write_all(format!("\n{GREETING}{}\n", env!("CARGO_PKG_VERSION")).as_bytes())?;
        let free = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?.local_addr()?.port();
        Report::Ready(free).send(&mut stdout)?;
        Ok(Self { stdout: Mutex::new(stdout), closed: Default::default() })
    }

    /// Whether it could be told.
    fn tell(&self, report: &Report) -> bool {
        let mut stdout = self.stdout.lock().unwrap_or_else(PoisonError::into_inner);
        report.send(&mut *stdout).is_ok()
    }

    fn close(&self, stream: Stream) {
        self.closed(stream).store(true, Ordering::Relaxed);
    }

    const fn closed(&self, stream: Stream) -> &AtomicBool {
        match stream {
            Stream::Stdout => &self.closed[0],
            Stream::Stderr => &self.closed[1],
        }
    }
}

/// What is to be started.
#[derive(Default)]
struct Job {
    variables: Vec<(Vec<u8>, Vec<u8>)>,
    folder: PathBuf,
    words: Vec<Vec<u8>>,
    /// Numbers in the world, by number on this host.
    ranks: Vec<usize>,
}

impl Job {
    fn add(&mut self, order: Order) {
        match order {
            Order::Variable(name, value) => self.variables.push((name, value)),
            Order::Folder(folder) => self.folder = OsStr::from_bytes(&folder).into(),
            Order::Word(word) => self.words.push(word),
            Order::Rank(rank) => self.ranks.push(rank),
            Order::Start | Order::Signal(_) | Order::Close(_) => {}
        }
    }

    /// Starts a rank, in a process group of its own: signals reach what it has started itself too, and those of a
    /// terminal come through the launcher alone.
    fn start(&self, index: usize) -> Rank {
        let number = self.ranks.get(index).copied().unwrap_or_default();
        let text = OsStr::from_bytes;
        let mut command = myself();
        command.args(["launch-rank", "--keeper", &std::process::id().to_string(), "--"]);
        command.args(self.words.iter().map(|word| text(word)));
        command.envs(self.variables.iter().map(|(name, value)| (text(name), text(value))));
        command.env("ATTN_RANK", number.to_string()).env("ATTN_LOCAL_RANK", index.to_string());
        command.current_dir(&self.folder).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = if self.folder.is_dir() {
            command.spawn().map_err(|error| error.to_string())
        } else {
            Err(format!("the folder `{}` is not there", self.folder.display()))
        };
        Rank { number, child: Mutex::new(child.map(Some)) }
    }
}

/// This very program, also if another has been put in its place meanwhile.
pub(super) fn myself() -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("attn");
        return command;
    }
    Command::new(std::env::current_exe().unwrap_or_else(|_| "attn".into()))
}

/// A rank of this host.
struct Rank {
    number: usize,
    /// The process until it has ended, or why there is none.
    child: Mutex<Result<Option<Child>, String>>,
}

impl Rank {
    /// Sends a signal to it and to what it has started, if it lives.
    fn signal(&self, signal: Signal) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(Some(child)) = &*child {
            // It may be about to end by itself.
            let _ = kill_process_group(pid(child), signal);
        }
    }

    /// Passes on what it writes, and tells how it ends.
    fn watch(self: &Arc<Self>, launcher: &Arc<Launcher>) {
        let (done, read) = channel();
        let telling = Arc::new(AtomicUsize::new(0));
        let started = match &mut *self.child.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(Some(child)) => {
                let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
                let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
                for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
                    if let Some(pipe) = pipe {
                        pass_on(self.number, pipe, stream, launcher, (done.clone(), Arc::clone(&telling)));
                    }
                }
                Ok(pid(child))
            }
            Ok(None) => Err(String::from("it has ended")),
            Err(why) => Err(why.clone()),
        };
        drop(done);
        let end = match started {
            Ok(pid) => self.wait(pid, &read, &telling),
            Err(why) => End::NotStarted(why),
        };
        launcher.tell(&Report::Ended(self.number, end));
    }

    /// Waits for its end, and then until `read` is disconnected: its outputs have ended. `telling`: how many of them the
    /// launcher is being told.
    fn wait(&self, pid: Pid, read: &Receiver<()>, telling: &AtomicUsize) -> End {
        // Its number is not given to another process while it has not been asked for its end for good: until then the
        // group can be killed without harm to others.
        while waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            .is_err_and(|error| error == rustix::io::Errno::INTR)
        {}
        let status = {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            // What it leaves behind ends with it.
            let _ = kill_process_group(pid, Signal::KILL);
            match std::mem::replace(&mut *child, Ok(None)) {
                Ok(Some(mut child)) => child.wait(),
                _ => Ok(ExitStatus::default()),
            }
        };
        let mut left = LAST_WORDS;
        while !left.is_zero() && read.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if telling.load(Ordering::Relaxed) == 0 {
                left = left.saturating_sub(LOOK);
            }
        }
        match status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => End::Code(code),
                (None, signal) => End::Signal(signal.unwrap_or_default()),
            },
            Err(error) => End::NotStarted(error.to_string()),
        }
    }
}

/// Passes on an output of a rank, until it ends or nobody reads it any more.
fn pass_on(
    rank: usize,
    pipe: Box<dyn Read + Send>,
    stream: Stream,
    launcher: &Arc<Launcher>,
    (done, telling): (Sender<()>, Arc<AtomicUsize>),
) {
    let launcher = Arc::clone(launcher);
    let pass = move || {
        // A pipe that cannot be read has come to its end.
        let _ = line::each(pipe, |lines| {
            telling.fetch_add(1, Ordering::Relaxed);
            let told = !launcher.closed(stream).load(Ordering::Relaxed)
                && launcher.tell(&Report::Lines(rank, stream, lines.to_vec()));
            telling.fetch_sub(1, Ordering::Relaxed);
            told
        });
        drop(done);
    };
    // Without a thread nobody reads: the rank finds its output closed.
    let _ = Builder::new().name(format!("output of {rank}")).spawn(pass);
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}
