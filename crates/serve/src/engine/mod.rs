//! The engine: a thread that runs passes over whatever is waiting, and the handle that requests are given to.

mod choose;
mod grammar;
mod pool;
mod prefixes;
mod request;
mod running;
mod schedule;
mod waiting;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

pub use grammar::{Grammar, GrammarError, Grammars};
pub use request::{Event, FinishReason, Generation, Pooled, TokenInfo, Usage};

use crate::base::BaseModel;
use request::Submitted;
use schedule::Scheduler;

/// How much the engine does at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Sequences that are generated together.
    pub running: usize,
    /// Requests that wait; more are refused.
    pub waiting: usize,
    /// Rows of a pass that read prompts.
    pub prompt_rows: usize,
    /// Bytes of keys and values, of running sequences and kept prefixes together.
    pub cache_bytes: usize,
    /// Whether keys and values of prompts' beginnings are kept for other requests.
    pub keeps_prefixes: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { running: 64, waiting: 1024, prompt_rows: 512, cache_bytes: 2 << 30, keeps_prefixes: true }
    }
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SubmitError {
    /// Too many wait.
    #[error("{waiting} requests wait already: try again later")]
    Full {
        /// How many.
        waiting: usize,
    },
    /// It ends.
    #[error("the server is shutting down")]
    Ending,
    /// The model does not do this.
    #[error("the model '{model}' is for {task}, which does not {what}")]
    Task {
        /// What the model is called.
        model: String,
        /// What it is for.
        task: &'static str,
        /// What was asked for.
        what: &'static str,
    },
    /// Longer than the model's context.
    #[error("the prompt has {tokens} tokens and {new} more are asked for, but the model takes {longest}")]
    Long {
        /// Of the prompt, virtual ones of the adapter included.
        tokens: usize,
        /// New ones.
        new: usize,
        /// Both together at the most.
        longest: usize,
    },
    /// More than fits memory even alone.
    #[error("the request needs more memory for keys and values than the server has: ask for fewer tokens")]
    Memory,
    /// Nothing to go on from.
    #[error("the prompt is empty")]
    Empty,
}

/// Takes requests for the engine's thread. Dropping the last handle ends the thread after what it has begun.
pub struct Engine {
    base: Arc<BaseModel>,
    options: EngineOptions,
    sender: Mutex<Option<SyncSender<Submitted>>>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and the handles both see.
#[derive(Default)]
pub(crate) struct Shared {
    /// Requests that have not begun.
    pub(crate) waiting: AtomicUsize,
    pub(crate) running: AtomicUsize,
    pub(crate) passes: AtomicU64,
    pub(crate) rows: AtomicU64,
    pub(crate) pages: AtomicUsize,
    pub(crate) page_limit: AtomicUsize,
    pub(crate) prefix_tokens: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) new_tokens: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    /// Everything is dropped at once.
    pub(crate) aborts: AtomicBool,
}

/// Counts at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that have not begun.
    pub waiting: usize,
    /// Sequences being generated.
    pub running: usize,
    /// Passes so far.
    pub passes: u64,
    /// Rows of all passes.
    pub rows: u64,
    /// Pages of keys and values in use, reserved ones included.
    pub pages: usize,
    /// Pages at the most.
    pub page_limit: usize,
    /// Prompt tokens whose keys and values were there already.
    pub prefix_tokens: u64,
    /// Prompt tokens.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub new_tokens: u64,
    /// Passes that failed.
    pub failures: u64,
    /// Requests whose client went away.
    pub cancelled: u64,
}

impl Engine {
    /// Starts the thread.
    pub fn start(base: Arc<BaseModel>, options: EngineOptions) -> Self {
        let shared = Arc::new(Shared::default());
        let (sender, receiver) = sync_channel(options.waiting.max(1));
        let thread = {
            let (base, shared) = (Arc::clone(&base), Arc::clone(&shared));
            std::thread::Builder::new().name("engine".into()).spawn(move || run(&base, options, &receiver, &shared))
        };
        let thread = Mutex::new(thread.ok());
        Self { base, options, sender: Mutex::new(Some(sender)), shared, thread }
    }

    /// The model.
    pub fn base(&self) -> &Arc<BaseModel> {
        &self.base
    }

    /// Hands a text to be continued over. Its events go to the channel that it holds; closing that cancels it.
    ///
    /// # Errors
    /// Too many wait, or it can never run.
    pub fn generate(&self, generation: Generation) -> Result<(), SubmitError> {
        if !self.base.generates() {
            return Err(self.not_for("continue texts"));
        }
        generation.check(&self.base, &self.options)?;
        self.submit(Submitted::Generation(Box::new(generation)))
    }

    /// Hands a text to be judged, or turned into features, over.
    ///
    /// # Errors
    /// Too many wait, or it can never run.
    pub fn pool(&self, pooled: Pooled) -> Result<(), SubmitError> {
        pooled.check(&self.base)?;
        self.submit(Submitted::Pooled(Box::new(pooled)))
    }

    pub(crate) fn not_for(&self, what: &'static str) -> SubmitError {
        SubmitError::Task { model: self.base.name.clone(), task: self.base.task().name(), what }
    }

    fn submit(&self, submitted: Submitted) -> Result<(), SubmitError> {
        let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let refuse = |error| {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            Err(error)
        };
        if waiting >= self.options.waiting {
            return refuse(SubmitError::Full { waiting });
        }
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = sender.as_ref() else { return refuse(SubmitError::Ending) };
        match sender.try_send(submitted) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => refuse(SubmitError::Full { waiting }),
            Err(TrySendError::Disconnected(_)) => refuse(SubmitError::Ending),
        }
    }

    /// Counts at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let Shared { waiting, running, passes, rows, pages, page_limit, .. } = &*self.shared;
        let number = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let size = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Snapshot {
            waiting: size(waiting),
            running: size(running),
            passes: number(passes),
            rows: number(rows),
            pages: size(pages),
            page_limit: size(page_limit),
            prefix_tokens: number(&self.shared.prefix_tokens),
            prompt_tokens: number(&self.shared.prompt_tokens),
            new_tokens: number(&self.shared.new_tokens),
            failures: number(&self.shared.failures),
            cancelled: number(&self.shared.cancelled),
        }
    }

    /// Takes no more requests; what has been taken goes on.
    pub fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Whether requests are taken.
    pub fn is_open(&self) -> bool {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends what is left at once, and the thread.
    pub fn abort(&self) {
        self.shared.aborts.store(true, Ordering::Relaxed);
        self.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that failed has answered nobody, which the closed channels say.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.abort();
    }
}

/// The thread: passes while there is something to do, sleep while there is not.
fn run(base: &BaseModel, options: EngineOptions, receiver: &Receiver<Submitted>, shared: &Shared) {
    let mut scheduler = Scheduler::new(base, options, shared);
    let mut is_open = true;
    while is_open || !scheduler.is_idle() {
        if shared.aborts.load(Ordering::Relaxed) {
            return;
        }
        if scheduler.is_idle() {
            match receiver.recv_timeout(Duration::from_millis(500)) {
                Ok(submitted) => scheduler.take(submitted),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => continue,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => is_open = false,
            }
        }
        loop {
            match receiver.try_recv() {
                Ok(submitted) => scheduler.take(submitted),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => {
                    is_open = false;
                    break;
                }
            }
        }
        scheduler.step();
    }
}
