//! What each pass is made of: a row of every text that is being written, and pieces of prompts as far as there is room.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rayon::prelude::*;
use tunesmith_models::{Addition, Cache, PAGE_TOKENS, Page, PageBuffers, SequenceCache, add_tokens};

use super::prefixes::{Edge, Prefixes};
use super::request::{FinishReason, Generation, Pooled, Submitted, page_limit, tuners};
use super::running::{PIECE, Running, Step};
use super::waiting::Waiting;
use super::{EngineOptions, Shared, pool};
use crate::base::BaseModel;

/// Everything that waits or runs.
pub(super) struct Scheduler<'a> {
    base: &'a BaseModel,
    options: EngineOptions,
    shared: &'a Shared,
    waiting: Waiting,
    running: Vec<Running<'a>>,
    pooled: VecDeque<Pooled>,
    prefixes: Prefixes,
    buffers: PageBuffers,
    page_limit: usize,
    /// Pages that running texts have reserved.
    reserved: usize,
    begun: u64,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(base: &'a BaseModel, options: EngineOptions, shared: &'a Shared) -> Self {
        let buffers = PageBuffers::new(base.model().info(), base.workspace.kernels().precision());
        let page_limit = page_limit(base, &options);
        shared.page_limit.store(page_limit, Ordering::Relaxed);
        Self {
            base,
            options,
            shared,
            waiting: Waiting::default(),
            running: Vec::new(),
            pooled: VecDeque::new(),
            prefixes: Prefixes::default(),
            buffers,
            page_limit,
            reserved: 0,
            begun: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.len() == 0 && self.running.is_empty() && self.pooled.is_empty()
    }

    pub(super) fn take(&mut self, submitted: Submitted) {
        match submitted {
            Submitted::Generation(generation) => self.waiting.push(generation),
            Submitted::Pooled(pooled) => self.pooled.push_back(*pooled),
        }
    }

    /// One pass of generation, and one of texts to be judged, where there are any.
    pub(super) fn step(&mut self) {
        self.drop_cancelled();
        self.pool();
        self.admit();
        self.pass();
        self.count();
    }

    fn count(&self) {
        self.shared.running.store(self.running.len(), Ordering::Relaxed);
        self.shared.pages.store(self.reserved + self.prefixes.pages(), Ordering::Relaxed);
    }

    fn leave_queue(&self, count: usize) {
        self.shared.waiting.fetch_sub(count, Ordering::Relaxed);
    }

    fn drop_cancelled(&mut self) {
        let dropped = self.waiting.drop_cancelled();
        self.leave_queue(dropped);
        let before = self.running.len();
        let reserved = &mut self.reserved;
        self.running.retain(|running| {
            let is_wanted = !running.generation.events.is_closed();
            *reserved -= if is_wanted { 0 } else { running.reserved };
            is_wanted
        });
        let cancelled = dropped + before - self.running.len();
        self.shared.cancelled.fetch_add(cancelled as u64, Ordering::Relaxed);
    }

    /// Texts to be judged, as many as a pass takes.
    fn pool(&mut self) {
        let mut rows = 0;
        let mut batch = Vec::new();
        while let Some(next) = self.pooled.front() {
            rows += next.tokens.len();
            if !batch.is_empty() && rows > self.options.prompt_rows {
                break;
            }
            batch.extend(self.pooled.pop_front());
        }
        if batch.is_empty() {
            return;
        }
        self.leave_queue(batch.len());
        self.shared.passes.fetch_add(1, Ordering::Relaxed);
        self.shared.rows.fetch_add(rows as u64, Ordering::Relaxed);
        if !pool::run(self.base, batch) {
            self.shared.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins requests that wait while there is room, in the order that is fair.
    fn admit(&mut self) {
        while self.running.len() < self.options.running {
            let Some(next) = self.waiting.peek() else { return };
            let needed = next.pages(self.base);
            while self.reserved + self.prefixes.pages() + needed > self.page_limit && self.prefixes.evict() {}
            if self.reserved + self.prefixes.pages() + needed > self.page_limit {
                // Those behind wait too: a long request would otherwise never find room.
                return;
            }
            let Some(generation) = self.waiting.pop() else { return };
            self.leave_queue(1);
            self.begin(generation, needed);
        }
    }

    fn begin(&mut self, generation: Box<Generation>, needed: usize) {
        let cache = SequenceCache::new(self.base.model().info(), &self.buffers);
        let salt = generation.cache_salt.clone();
        let mut running = Running::new(self.base, generation, cache);
        (running.reserved, running.order) = (needed, self.begun);
        self.begun += 1;
        self.reserved += needed;
        self.shared.prompt_tokens.fetch_add(running.prompt as u64, Ordering::Relaxed);
        if self.options.keeps_prefixes && !running.is_whole && running.source.is_empty() {
            self.find_prefix(&mut running, salt);
        }
        self.running.push(running);
    }

    /// Takes over what is kept of the prompt's beginning.
    fn find_prefix(&mut self, running: &mut Running<'_>, salt: String) {
        let root = Edge::Root(running.key.clone(), salt);
        let mut pages = Vec::new();
        let found = self.prefixes.find(&root).map(|(id, kept)| {
            pages.extend_from_slice(kept);
            id
        });
        let Some(mut id) = found else {
            if !running.needs_virtual {
                let id = self.prefixes.insert(&root, None, &[]);
                running.place = Some((root, id));
            } else {
                // Its first pass makes the pages of the virtual tokens, which the root then holds.
                running.place = Some((root, 0));
            }
            return;
        };
        running.needs_virtual = false;
        let mut edge = root;
        let mut tokens = 0;
        // The last token runs in any case: its logits are wanted.
        for piece in running.tokens[..running.prompt - 1].chunks_exact(PIECE) {
            let next = Edge::Tokens(id, piece.into());
            let Some((next_id, kept)) = self.prefixes.find(&next) else { break };
            pages.extend_from_slice(kept);
            (edge, id) = (next, next_id);
            tokens += piece.len();
        }
        let shared = pages.len().min(running.reserved);
        running.reserved -= shared;
        self.reserved -= shared;
        if let Some(cache) = &mut running.cache {
            cache.begin_with(pages);
        }
        running.skip(tokens);
        running.place = Some((edge, id));
        self.shared.prefix_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Chooses who takes part in a pass and with what.
    fn compose(&self) -> Vec<(usize, Step)> {
        let mut steps = Vec::new();
        let mut prompts: Vec<usize> = Vec::new();
        for (number, running) in self.running.iter().enumerate() {
            if running.decodes() {
                steps.push((number, running.next(1)));
            } else {
                prompts.push(number);
            }
        }
        prompts.sort_by_key(|number| self.running[*number].order);
        let mut room = self.options.prompt_rows;
        for number in prompts {
            if room == 0 {
                break;
            }
            let running = &self.running[number];
            let step = running.next(room);
            steps.push((number, step));
            room = room.saturating_sub(step.tokens.max(running.source.len()).max(1));
        }
        steps.sort_by(|(a, _), (b, _)| {
            let key = |number: &usize| (&self.running[*number].key, self.running[*number].order);
            key(a).cmp(&key(b))
        });
        steps
    }

    fn pass(&mut self) {
        let steps = self.compose();
        if steps.is_empty() {
            return;
        }
        let caches: Vec<SequenceCache> =
            steps.iter().filter_map(|(number, _)| self.running[*number].cache.take()).collect();
        let mut cache = Cache::of(caches);
        let rows: usize = steps.iter().map(|(_, step)| step.tokens).sum();
        self.shared.passes.fetch_add(1, Ordering::Relaxed);
        self.shared.rows.fetch_add(rows as u64, Ordering::Relaxed);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let additions = steps.iter().map(|(number, step)| {
                let running = &self.running[*number];
                Addition {
                    adapter: tuners(running.generation.adapter.as_ref()),
                    source: &running.source,
                    tokens: &running.tokens[running.done..running.done + step.tokens],
                    answers: step.answers,
                }
            });
            let additions: Vec<Addition<'_>> = additions.collect();
            add_tokens(self.base.model(), &self.base.workspace, &additions, &mut cache)
        }));
        let Ok(logits) = ran else {
            self.fail(&steps);
            return;
        };
        let mut outcomes: Vec<Option<Outcome>> = self.running.iter().map(|_| None).collect();
        let mut row = 0;
        let mut answering: Vec<Option<usize>> = vec![None; self.running.len()];
        for ((number, step), cache) in steps.iter().zip(cache.into_sequences()) {
            let running = &mut self.running[*number];
            running.cache = Some(cache);
            running.source.clear();
            let had_virtual = running.needs_virtual;
            if had_virtual && let Some(cache) = &mut running.cache {
                cache.end_page();
            }
            running.needs_virtual = false;
            running.done += step.tokens;
            if step.answers {
                answering[*number] = Some(row);
                row += 1;
            }
            self.waiting.count(&running.key, step.tokens.max(1) as u64);
            keep(&mut self.prefixes, running, had_virtual, &mut self.reserved);
        }
        let logits = logits.value();
        // Many texts choose from many logits: that is work for all threads.
        self.base.workspace.run(|| {
            let all = self.running.par_iter_mut().zip(&mut outcomes).zip(&answering);
            all.for_each(|((running, outcome), row)| {
                let Some(row) = row else { return };
                let accepted = catch_unwind(AssertUnwindSafe(|| running.accept(logits.row(*row))));
                *outcome = Some(match accepted {
                    Ok(Ok(None)) => Outcome::GoesOn,
                    Ok(Ok(Some(reason))) => Outcome::Finished(reason),
                    Ok(Err(reason)) => Outcome::Failed(reason),
                    Err(_) => Outcome::Failed("choosing a token failed".to_owned()),
                });
            });
        });
        let told = outcomes.iter().flatten().count();
        self.shared.new_tokens.fetch_add(told as u64, Ordering::Relaxed);
        let mut outcomes = outcomes.into_iter();
        let reserved = &mut self.reserved;
        self.running.retain(|running| {
            let goes_on = match outcomes.next().flatten() {
                None | Some(Outcome::GoesOn) => return true,
                Some(Outcome::Finished(reason)) => {
                    running.finish(reason);
                    false
                }
                Some(Outcome::Failed(reason)) => {
                    running.fail(reason);
                    false
                }
            };
            *reserved -= running.reserved;
            goes_on
        });
    }

    /// A pass did not end: nobody knows what is in the caches of those who took part.
    fn fail(&mut self, steps: &[(usize, Step)]) {
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        tracing::error!(sequences = steps.len(), "a pass failed");
        let mut number = 0;
        let reserved = &mut self.reserved;
        self.running.retain(|running| {
            let took_part = steps.iter().any(|(other, _)| *other == number);
            number += 1;
            if took_part {
                running.fail("the engine failed on the batch that this request was part of".to_owned());
                *reserved -= running.reserved;
            }
            !took_part
        });
    }
}

enum Outcome {
    GoesOn,
    Finished(FinishReason),
    Failed(String),
}

/// Gives the whole pages of a prompt that have just been computed to the tree of prefixes.
fn keep(prefixes: &mut Prefixes, running: &mut Running<'_>, had_virtual: bool, reserved: &mut usize) {
    let Some((edge, id)) = running.place.take() else { return };
    let Some(cache) = &running.cache else { return };
    let mut give =
        |prefixes: &mut Prefixes, running: &mut usize, edge: &Edge, parent: Option<&Edge>, pages: &[Arc<Page>]| {
            let before = prefixes.pages();
            let id = prefixes.insert(edge, parent, pages);
            // The tree counts them from now on. Those that another request gave first stay this one's own.
            let given = (prefixes.pages() - before).min(*running);
            *running -= given;
            *reserved -= given;
            id
        };
    let (mut edge, mut id) = (edge, id);
    let pages = cache.pages();
    if had_virtual {
        let count = pages.iter().take_while(|page| page.is_closed()).count();
        id = give(prefixes, &mut running.reserved, &edge, None, &pages[..count]);
    }
    let virtual_pages = pages.iter().take_while(|page| page.is_closed()).count();
    let whole = running.done.min(running.prompt) / PAGE_TOKENS;
    for piece in running.kept..whole {
        let tokens = &running.tokens[piece * PIECE..(piece + 1) * PIECE];
        let next = Edge::Tokens(id, tokens.into());
        let page = virtual_pages + piece;
        id = give(prefixes, &mut running.reserved, &next, Some(&edge), &pages[page..page + 1]);
        edge = next;
    }
    running.kept = running.kept.max(whole);
    running.place = Some((edge, id));
}
