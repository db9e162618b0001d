//! Which requests run in a step, with how many tokens, and which are preempted. Knows nothing of models and pages.
//!
//! - First come, first served: requests are admitted in the order of their ids, and `running` is always in that order.
//! - Every request that has one token to run (it decodes) runs it in every step. What is left of the step's tokens goes to
//!   prompts, a page at a time in turn, so that a long prompt does not hold up a short one. There are fewer of them where those
//!   that decode would wait too long.
//! - Memory goes to the oldest first. If there is none left for it, the newest gives its own back and waits. So the oldest
//!   always gets on, and all end.

use std::collections::VecDeque;

use sparamx_kernels::attention::PAGE_TOKENS;

use super::api::RequestId;

/// The schedule's view of requests.
pub(crate) trait Requests {
    /// Whether there is memory for all tokens of a request that waits. If so, or if it is `alone`, it has a cache from now on.
    fn admit(&mut self, id: RequestId, alone: bool) -> bool;

    /// Tokens of a running request that are not in its cache, at least one, and the most that it takes in a step.
    fn pending(&self, id: RequestId) -> Pending;

    /// Tokens of prompts that a step takes at most beside requests that decode, if no fewer decode than have prompts left: at least one.
    fn beside(&self) -> usize;

    /// Gets a running request the memory for so many tokens more; false if there is too little.
    fn reserve(&mut self, id: RequestId, tokens: usize) -> bool;

    /// A running request gives its memory back and waits.
    fn preempt(&mut self, id: RequestId);
}

/// What a request has to run before its next token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Tokens that are in the cache.
    pub done: usize,
    /// Tokens that are not, at least one. If it is one, the request decodes.
    pub tokens: usize,
    /// Most that it takes in a step.
    pub most: usize,
}

/// A request's part in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    pub id: RequestId,
    /// Tokens to run, at least one.
    pub tokens: usize,
}

/// The line of requests.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    max_running: usize,
    step_tokens: usize,
    running: Vec<RequestId>,
    waiting: VecDeque<RequestId>,
    /// The prompt after this one has the next page.
    last_served: RequestId,
}

impl Schedule {
    /// A line for up to `max_running` requests at a time, and about `step_tokens` tokens a step; both at least one.
    pub fn new(max_running: usize, step_tokens: usize) -> Self {
        Self {
            max_running,
            step_tokens,
            running: Vec::new(),
            waiting: VecDeque::new(),
            last_served: RequestId(0),
        }
    }

    /// A request joins the line. Its id is greater than all before.
    pub fn push(&mut self, id: RequestId) {
        self.waiting.push_back(id);
    }

    /// A request leaves, wherever it is.
    pub fn remove(&mut self, id: RequestId) {
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
    }

    /// Those admitted, oldest first.
    pub fn running(&self) -> &[RequestId] {
        &self.running
    }

    /// Number of those not admitted.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Decides a step. Memory for it is reserved then. No turn at all with a single request running: it lacks memory that
    /// nobody can give. (With several, the next step has other turns.)
    pub fn step(&mut self, requests: &mut dyn Requests) -> Vec<Turn> {
        self.admit(requests);
        let mut planned = self.share(requests);
        let mut turns = Vec::with_capacity(planned.len());
        let mut next = 0;
        while let Some(&turn) = planned.get(next) {
            next += 1;
            while !requests.reserve(turn.id, turn.tokens) {
                let newest = self.running.last().copied();
                if newest == Some(turn.id) {
                    // It keeps what it has and runs when there is more, unless an older one needs it.
                    return turns;
                }
                let Some(newest) = self.running.pop() else {
                    return turns;
                };
                requests.preempt(newest);
                self.waiting.push_front(newest);
                planned.retain(|turn| turn.id != newest);
            }
            turns.push(turn);
        }
        turns
    }

    /// Whether one more request may run, and none waits for its turn.
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.running.len() < self.max_running
    }

    /// Admits as many as can run.
    pub fn admit(&mut self, requests: &mut dyn Requests) {
        while self.running.len() < self.max_running
            && let Some(&first) = self.waiting.front()
            && requests.admit(first, self.running.is_empty())
        {
            self.waiting.pop_front();
            self.running.push(first);
        }
    }

    /// The turns there would be with memory for all, oldest first.
    fn share(&mut self, requests: &dyn Requests) -> Vec<Turn> {
        let pending: Vec<Pending> = self
            .running
            .iter()
            .map(|&id| requests.pending(id))
            .collect();
        let decodes = |pending: &Pending| pending.tokens == 1;
        let decoding = pending.iter().filter(|p| decodes(p)).count();
        // However many decode, prompts get on.
        let mut left = self
            .step_tokens
            .saturating_sub(decoding)
            .max(PAGE_TOKENS.min(self.step_tokens));
        // Where more wait for their prompts than for their next tokens, as after a burst, prompts get more of the step.
        if let Some(times) = (pending.len() - decoding).checked_div(decoding) {
            left = left.min(requests.beside().saturating_mul(times.max(1)));
        }
        let mut tokens: Vec<usize> = pending.iter().map(|p| usize::from(decodes(p))).collect();
        let first = self.running.partition_point(|&id| id <= self.last_served);
        let order: Vec<usize> = (first..pending.len())
            .chain(0..first)
            .filter(|&i| !decodes(&pending[i]))
            .collect();
        let mut served = true;
        while left > 0 && served {
            served = false;
            for &i in &order {
                let Pending {
                    done,
                    tokens: all,
                    most,
                } = pending[i];
                // Pieces end where pages do, if they can.
                let to_page_end = PAGE_TOKENS - (done + tokens[i]) % PAGE_TOKENS;
                let piece = to_page_end.min(all.min(most) - tokens[i]).min(left);
                if piece > 0 {
                    tokens[i] += piece;
                    left -= piece;
                    served = true;
                    self.last_served = self.running[i];
                }
            }
        }
        self.running
            .iter()
            .zip(tokens)
            .filter(|&(_, tokens)| tokens > 0)
            .map(|(&id, tokens)| Turn { id, tokens })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    /// Requests with a page count for memory: nothing is shared, pages are counted by tokens.
    struct Pages {
        total: usize,
        /// Tokens of prompts beside those that decode.
        beside: usize,
        line: BTreeMap<u64, Fake>,
    }

    #[derive(Clone, Copy, Default, Debug)]
    struct Fake {
        prompt: usize,
        known: usize,
        done: usize,
        pages: usize,
        admitted: bool,
        preempted: usize,
    }

    impl Pages {
        fn new(total: usize, prompts: &[usize]) -> Self {
            let fake = |&prompt: &usize| Fake {
                prompt,
                known: prompt,
                ..Fake::default()
            };
            let line = prompts.iter().map(fake);
            Self {
                total,
                beside: usize::MAX,
                line: (1..).zip(line).collect(),
            }
        }

        fn free(&self) -> usize {
            self.total - self.line.values().map(|r| r.pages).sum::<usize>()
        }

        fn run(&mut self, turns: &[Turn]) {
            for turn in turns {
                let request = self.line.get_mut(&turn.id.0).unwrap();
                request.done += turn.tokens;
                assert!(request.done <= request.pages * PAGE_TOKENS && request.admitted);
                if request.done == request.known {
                    request.known += 1;
                }
            }
        }
    }

    impl Requests for Pages {
        fn admit(&mut self, id: RequestId, alone: bool) -> bool {
            let outstanding: usize = self
                .line
                .values()
                .filter(|r| r.admitted)
                .map(|r| (r.known + 1).div_ceil(PAGE_TOKENS).saturating_sub(r.pages))
                .sum();
            let free = self.free();
            let request = self.line.get_mut(&id.0).unwrap();
            let fits = (request.known + 1).div_ceil(PAGE_TOKENS) + outstanding <= free;
            request.admitted = fits || alone;
            request.admitted
        }

        fn pending(&self, id: RequestId) -> Pending {
            let request = self.line[&id.0];
            Pending {
                done: request.done,
                tokens: request.known - request.done,
                most: usize::MAX,
            }
        }

        fn beside(&self) -> usize {
            self.beside
        }

        fn reserve(&mut self, id: RequestId, tokens: usize) -> bool {
            let free = self.free();
            let request = self.line.get_mut(&id.0).unwrap();
            let more = (request.done + tokens)
                .div_ceil(PAGE_TOKENS)
                .saturating_sub(request.pages);
            if more > free {
                return false;
            }
            request.pages += more;
            true
        }

        fn preempt(&mut self, id: RequestId) {
            let request = self.line.get_mut(&id.0).unwrap();
            (request.done, request.pages, request.admitted) = (0, 0, false);
            request.preempted += 1;
        }
    }

    fn schedule(requests: u64) -> Schedule {
        let mut schedule = Schedule::new(64, 512);
        (1..=requests).for_each(|id| schedule.push(RequestId(id)));
        schedule
    }

    fn tokens(turns: &[Turn]) -> Vec<(u64, usize)> {
        turns.iter().map(|turn| (turn.id.0, turn.tokens)).collect()
    }

    #[test]
    fn decoding_goes_on_while_prompts_share_the_rest() {
        let mut pages = Pages::new(1000, &[1, 2000, 100, 2000]);
        let mut schedule = schedule(4);
        // One decodes, of 511 tokens the short prompt has all it needs, and the last page is cut.
        let turns = schedule.step(&mut pages);
        assert_eq!(tokens(&turns), [(1, 1), (2, 219), (3, 100), (4, 192)]);
        pages.run(&turns);
        // Both long prompts are in the same place again after two more steps.
        for _ in 0..2 {
            let turns = schedule.step(&mut pages);
            assert_eq!(turns.iter().map(|turn| turn.tokens).sum::<usize>(), 512);
            pages.run(&turns);
        }
        let [a, b] = [2, 4].map(|id| pages.line[&id].done);
        assert!(a.abs_diff(b) <= PAGE_TOKENS, "{a} {b}");
    }

    #[test]
    fn prompts_are_slower_beside_those_that_decode() {
        let mut pages = Pages::new(1000, &[1, 1, 2000, 100]);
        pages.beside = 100;
        let mut schedule = schedule(4);
        let turns = schedule.step(&mut pages);
        assert_eq!(tokens(&turns), [(1, 1), (2, 1), (3, 64), (4, 36)]);
        pages.run(&turns);
        // The rest of the page, and what is left after that.
        let turns = schedule.step(&mut pages);
        assert_eq!(tokens(&turns), [(1, 1), (2, 1), (3, 72), (4, 28)]);
        for id in [1, 2] {
            schedule.remove(RequestId(id));
            pages.line.remove(&id);
        }
        let turns = schedule.step(&mut pages);
        assert_eq!(turns.iter().map(|turn| turn.tokens).sum::<usize>(), 512);
    }

    #[test]
    fn a_burst_of_prompts_is_not_held_up_by_the_few_that_decode() {
        let mut pages = Pages::new(1000, &[1, 90, 90, 90, 90]);
        pages.beside = 50;
        let mut schedule = schedule(5);
        let prompts = |turns: &[Turn]| turns[1..].iter().map(|turn| turn.tokens).sum::<usize>();
        let turns = schedule.step(&mut pages);
        assert_eq!((turns[0].tokens, prompts(&turns)), (1, 200));
    }

    #[test]
    fn the_newest_gives_way_and_comes_back_when_there_is_room() {
        let mut pages = Pages::new(4, &[60, 60, 60]);
        let mut schedule = schedule(3);
        for _ in 0..10 {
            let turns = schedule.step(&mut pages);
            pages.run(&turns);
        }
        // At 65 tokens each wants a second page, and there is one more only.
        assert_eq!(schedule.running(), [1, 2].map(RequestId));
        assert_eq!(pages.line[&3].preempted, 1);
        assert_eq!((pages.line[&1].pages, pages.line[&2].pages), (2, 2));
        schedule.remove(RequestId(1));
        pages.line.remove(&1);
        let turns = schedule.step(&mut pages);
        assert_eq!(tokens(&turns)[1], (3, pages.line[&3].known));
    }

    #[test]
    fn there_are_only_so_many_at_a_time_and_none_overtakes() {
        let mut pages = Pages::new(10, &[64, 600, 5]);
        let mut schedule = schedule(3);
        assert_eq!(tokens(&schedule.step(&mut pages)), [(1, 64)]);
        assert_eq!(schedule.waiting(), 2);
        let mut pages = Pages::new(10, &[1, 1, 1]);
        let mut schedule = Schedule::new(2, 512);
        (1..=3).for_each(|id| schedule.push(RequestId(id)));
        assert_eq!(tokens(&schedule.step(&mut pages)), [(1, 1), (2, 1)]);
    }

    #[test]
    fn one_that_cannot_go_on_alone_has_no_turn() {
        let mut pages = Pages::new(1, &[65]);
        let mut schedule = schedule(1);
        assert_eq!(tokens(&schedule.step(&mut pages)), []);
        assert_eq!(schedule.running(), [RequestId(1)]);
    }

    proptest! {
        #[test]
        fn all_end_and_none_starves(
            prompts in prop::collection::vec(1usize..500, 1..12),
            lengths in prop::collection::vec(1usize..100, 12),
            total in 10usize..40, step_tokens in 1usize..600, max_running in 1usize..10, beside in 1usize..600,
        ) {
            let mut pages = Pages::new(total, &prompts);
            pages.beside = beside;
            let mut schedule = Schedule::new(max_running, step_tokens);
            (1..=prompts.len() as u64).for_each(|id| schedule.push(RequestId(id)));
            let mut steps = 0;
            while !pages.line.is_empty() {
                let turns = schedule.step(&mut pages);
                prop_assert!(!turns.is_empty() || schedule.running().len() > 1);
                prop_assert!(turns.is_sorted_by_key(|turn| turn.id));
                prop_assert!(schedule.running().is_sorted());
                prop_assert!(schedule.running().len() <= max_running);
                let decoding = turns.iter().filter(|t| pages.pending(t.id).tokens == 1).count();
                let rows: usize = turns.iter().map(|turn| turn.tokens).sum();
                prop_assert!(rows <= step_tokens.max(decoding + PAGE_TOKENS.min(step_tokens)));
                // The oldest always gets on, unless it waits for its turn among prompts.
                let oldest = schedule.running()[0];
                let decodes = pages.pending(oldest).tokens == 1;
                prop_assert!(!decodes || turns[0].id == oldest);
                pages.run(&turns);
                let ended: Vec<u64> = pages.line.iter()
                    .filter(|&(&id, r)| r.known - r.prompt >= lengths[id as usize - 1])
                    .map(|(&id, _)| id)
                    .collect();
                for id in ended {
                    pages.line.remove(&id);
                    schedule.remove(RequestId(id));
                }
                steps += 1;
                prop_assert!(steps < 100_000);
            }
            prop_assert_eq!(pages.free(), total);
        }
    }
}
