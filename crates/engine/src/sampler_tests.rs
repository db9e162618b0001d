use super::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        ..SamplingParams::default()
    };
    change(&mut params);
    params
}

fn sampler(change: impl FnOnce(&mut SamplingParams)) -> Sampler {
    Sampler::new(&params(change), &[]).unwrap()
}

/// The definition: full sort, full softmax, in the documented order. Probabilities by id.
fn exact(logits: &[f32], p: &SamplingParams, seen: &[u32]) -> Vec<f64> {
    let mut ranked: Vec<(usize, f64)> = (0..logits.len())
        .map(|id| {
            let logit = f64::from(logits[id]);
            let penalty = f64::from(p.repetition_penalty);
            let logit = match (seen.contains(&(id as u32)), logit > 0.0) {
                (false, _) => logit,
                (true, true) => logit / penalty,
                (true, false) => logit * penalty,
            };
            (id, logit / f64::from(p.temperature))
        })
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if p.top_k > 0 {
        ranked.truncate(p.top_k);
    }
    let softmax = |ranked: &[(usize, f64)]| -> Vec<f64> {
        let sum: f64 = ranked.iter().map(|c| (c.1 - ranked[0].1).exp()).sum();
        ranked
            .iter()
            .map(|c| (c.1 - ranked[0].1).exp() / sum)
            .collect()
    };
    if p.top_p < 1.0 {
        let mut before = 0.0;
        let probabilities = softmax(&ranked);
        let keep = probabilities.iter().take_while(|&&q| {
            before += q;
            before - q < f64::from(p.top_p)
        });
        let keep = keep.count().max(1);
        ranked.truncate(keep);
    }
    let probabilities = softmax(&ranked);
    let keep = probabilities
        .iter()
        .filter(|&&q| q >= f64::from(p.min_p) * probabilities[0])
        .count();
    ranked.truncate(keep);
    let mut by_id = vec![0.0; logits.len()];
    for ((id, _), q) in ranked.iter().zip(softmax(&ranked)) {
        by_id[*id] = q;
    }
    by_id
}

/// Draws many times and compares the counts with the exact probabilities by Pearson's chi-square.
///
/// The statistic of `d` degrees of freedom has mean d and variance 2d; ten standard deviations above the mean is far beyond
/// any chance, and 20 000 draws put a wrong filter or weight far beyond that. The seed is fixed.
fn assert_distribution(logits: &[f32], p: &SamplingParams, prompt: &[u32]) {
    const DRAWS: usize = 20_000;
    let expected = exact(logits, p, prompt);
    let mut sampler = Sampler::new(p, prompt).unwrap();
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..DRAWS {
        // A penalty is for the prompt alone here: what was drawn is forgotten.
        let id = sampler.draw_only(logits);
        counts[id as usize] += 1;
    }
    let mut statistic = 0.0;
    let mut cells = 0;
    for (id, (&count, &q)) in counts.iter().zip(&expected).enumerate() {
        if q == 0.0 {
            assert_eq!(count, 0, "token {id} was filtered out and drawn");
            continue;
        }
        let want = q * DRAWS as f64;
        statistic += (count as f64 - want).powi(2) / want;
        cells += 1;
    }
    let freedom = (cells - 1) as f64;
    let limit = freedom + 10.0 * (2.0 * freedom).sqrt();
    assert!(
        statistic <= limit,
        "chi-square {statistic:.1} with {freedom} degrees of freedom, limit {limit:.1}: {p:?}"
    );
}

impl Sampler {
    /// Draws and forgets what was drawn, but for the random stream.
    fn draw_only(&mut self, logits: &[f32]) -> u32 {
        let seen = self.seen.clone();
        let id = self.sample(logits).unwrap();
        self.seen = seen;
        id
    }
}

/// Logits with ties, a wide range and no order.
fn bumpy(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| {
            let x = (i * 7919 % n) as f32 / n as f32;
            (x * 12.0).floor() / 2.0 - 3.0 + ((i % 5) as f32) * 0.25
        })
        .collect()
}

#[test]
fn draws_follow_the_exact_distribution() {
    let logits = bumpy(60);
    let cases: [fn(&mut SamplingParams); 11] = [
        |_| (),
        |p| p.temperature = 0.5,
        |p| p.temperature = 2.0,
        |p| p.top_k = 7,
        |p| p.top_p = 0.6,
        |p| p.min_p = 0.2,
        |p| (p.top_k, p.top_p) = (12, 0.7),
        |p| (p.top_k, p.top_p, p.min_p) = (20, 0.9, 0.3),
        |p| (p.top_p, p.min_p, p.temperature) = (0.8, 0.05, 0.7),
        |p| p.repetition_penalty = 1.5,
        |p| (p.repetition_penalty, p.top_k, p.seed) = (0.8, 30, 9),
    ];
    for case in cases {
        assert_distribution(&logits, &params(case), &[1, 3, 3, 59]);
    }
}

#[test]
fn filters_agree_with_a_full_sort_on_a_large_vocabulary() {
    let logits = bumpy(5000);
    for (top_k, top_p) in [
        (0, 0.3),
        (0, 0.999),
        (1, 1.0),
        (300, 1.0),
        (3000, 0.99),
        (6000, 0.5),
    ] {
        let p = params(|p| (p.top_k, p.top_p) = (top_k, top_p));
        let want: Vec<u32> = exact(&logits, &p, &[])
            .iter()
            .zip(0..)
            .filter(|(q, _)| **q > 0.0)
            .map(|(_, id)| id)
            .collect();
        let mut sampler = Sampler::new(&p, &[]).unwrap();
        sampler.sample(&logits).unwrap();
        let mut got: Vec<u32> = sampler.candidates.iter().map(|c| c.id).collect();
        got.sort_unstable();
        assert_eq!(got, want, "top_k {top_k}, top_p {top_p}");
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut greedy = Sampler::new(&SamplingParams::greedy(), &[]).unwrap();
    assert_eq!(greedy.sample(&[0.5, 2.0, -1.0, 2.0]).unwrap(), 1);
    assert_eq!(greedy.sample(&[-0.0, 0.0]).unwrap(), 0);
    assert_eq!(greedy.sample(&[f32::NEG_INFINITY, -1e30]).unwrap(), 1);
}

#[test]
fn filters_at_their_ends() {
    let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY, 2.0];
    for _ in 0..50 {
        assert_eq!(sampler(|p| p.top_p = 0.0).sample(&logits).unwrap(), 1);
        assert_eq!(sampler(|p| p.top_k = 1).sample(&logits).unwrap(), 1);
    }
    let drawn = |change: fn(&mut SamplingParams)| {
        let mut sampler = sampler(change);
        let mut ids: Vec<u32> = (0..2000)
            .map(|_| sampler.sample(&logits).unwrap())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(drawn(|_| ()), [0, 1, 2, 4]);
    assert_eq!(drawn(|p| p.top_k = 100), [0, 1, 2, 4]);
    assert_eq!(drawn(|p| p.min_p = 1.0), [1, 2]);
    assert_eq!(drawn(|p| p.temperature = 1e-30), [1, 2]);
    assert_eq!(drawn(|p| p.temperature = f32::MIN_POSITIVE / 4.0), [1, 2]);
}

#[test]
fn a_penalty_moves_logits_of_either_sign_down() {
    let p = SamplingParams {
        repetition_penalty: 2.0,
        ..SamplingParams::greedy()
    };
    let sample =
        |logits: &[f32], prompt: &[u32]| Sampler::new(&p, prompt).unwrap().sample(logits).unwrap();
    assert_eq!(sample(&[3.0, 2.0], &[0]), 1);
    assert_eq!(sample(&[-1.0, -1.5], &[0]), 1);
    assert_eq!(
        sample(&[3.0, 1.0], &[0, 0, 7]),
        0,
        "once, however often it occurs; 7 is not in the row"
    );
    let mut sampler = Sampler::new(&p, &[]).unwrap();
    assert_eq!(sampler.sample(&[3.0, 2.0]).unwrap(), 0);
    assert_eq!(
        sampler.sample(&[3.0, 2.0]).unwrap(),
        1,
        "drawn tokens count"
    );
}

#[test]
fn an_extreme_penalty_leaves_probabilities() {
    for repetition_penalty in [1e-38, 1e38] {
        let mut sampler = sampler(|p| p.repetition_penalty = repetition_penalty);
        for _ in 0..20 {
            let id = sampler.sample(&[9.0, -9.0, f32::NEG_INFINITY]).unwrap();
            assert!(id < 2, "{id} is impossible");
        }
    }
}

#[test]
fn the_stream_is_the_same_everywhere() {
    let logits = bumpy(100);
    let ids = |seed| -> Vec<u32> {
        let mut sampler = sampler(|p| p.seed = seed);
        (0..8).map(|_| sampler.sample(&logits).unwrap()).collect()
    };
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
    // Computed once: a change breaks everybody's seeds.
    assert_eq!(ids(42), [73, 94, 47, 68, 35, 20, 36, 84]);
}

#[test]
fn rows_without_probabilities_are_refused() {
    let mut greedy = Sampler::new(&SamplingParams::greedy(), &[]).unwrap();
    let message = |r: Result<u32, EngineError>| r.unwrap_err().to_string();
    let nan = message(greedy.sample(&[1.0, f32::NAN]));
    assert!(nan.starts_with("the logit of token 1 is NaN"), "{nan}");
    let inf = message(greedy.sample(&[f32::INFINITY]));
    assert!(inf.starts_with("the logit of token 0 is inf"), "{inf}");
    for row in [&[][..], &[f32::NEG_INFINITY; 3]] {
        let none = message(greedy.sample(row));
        assert_eq!(none, "every logit is minus infinity: no token is possible");
    }
}

#[test]
fn parameters_are_checked_by_name() {
    let message =
        |change: fn(&mut SamplingParams)| params(change).validate().unwrap_err().to_string();
    assert_eq!(
        message(|p| p.temperature = -1.0),
        "temperature is -1, allowed is 0 or more"
    );
    assert_eq!(
        message(|p| p.temperature = f32::NAN),
        "temperature is NaN, allowed is 0 or more"
    );
    assert_eq!(
        message(|p| p.top_p = 1.5),
        "top_p is 1.5, allowed is 0 to 1"
    );
    assert_eq!(
        message(|p| p.min_p = -0.1),
        "min_p is -0.1, allowed is 0 to 1"
    );
    assert_eq!(
        message(|p| p.repetition_penalty = 0.0),
        "repetition_penalty is 0, allowed is more than 0, and 1 for none"
    );
    assert_eq!(
        message(|p| p.presence_penalty = 2.5),
        "presence_penalty is 2.5, allowed is -2 to 2"
    );
    assert_eq!(
        message(|p| p.frequency_penalty = f32::NAN),
        "frequency_penalty is NaN, allowed is -2 to 2"
    );
    assert_eq!(
        message(|p| p.logit_bias = [(1, 100.0), (2, -101.0)].into()),
        "logit_bias is -101, allowed is -100 to 100"
    );
    assert!(params(|_| ()).validate().is_ok());
    let ends = |p: &mut SamplingParams| {
        (p.presence_penalty, p.frequency_penalty) = (-2.0, 2.0);
        p.logit_bias = [(0, -100.0), (0, 100.0)].into();
    };
    assert!(params(ends).validate().is_ok());
}

#[test]
fn presence_counts_once_frequency_every_time_and_neither_the_prompt() {
    let chosen = |change: fn(&mut SamplingParams), rows: &[&[f32]]| -> Vec<u32> {
        let mut p = SamplingParams::greedy();
        change(&mut p);
        let mut sampler = Sampler::new(&p, &[0, 0, 0, 1]).unwrap();
        rows.iter()
            .map(|row| sampler.sample(row).unwrap())
            .collect()
    };
    let row: &[f32] = &[3.0, 2.0, 1.75];
    // 0 is 1 behind after its first time, whatever its number.
    let presence = |p: &mut SamplingParams| p.presence_penalty = 1.125;
    assert_eq!(chosen(presence, &[row; 5]), [0, 1, 0, 0, 0]);
    // 3, then 2.5, 2 and so on; an equal one has the lower id.
    let frequency = |p: &mut SamplingParams| p.frequency_penalty = 0.5;
    assert_eq!(chosen(frequency, &[row; 5]), [0, 0, 0, 1, 2]);
    let both = |p: &mut SamplingParams| (p.presence_penalty, p.frequency_penalty) = (1.0, 0.5);
    assert_eq!(chosen(both, &[row; 5]), [0, 1, 2, 0, 0]);
    let reward = |p: &mut SamplingParams| p.frequency_penalty = -1.0;
    assert_eq!(
        chosen(reward, &[&[0.0, 1.0], &[1.5, 1.0], &[2.5, 1.0]]),
        [1, 1, 1]
    );
    // The repetition penalty comes first: 4 / 2 - 1, and not (4 - 1) / 2.
    let order = |p: &mut SamplingParams| (p.repetition_penalty, p.presence_penalty) = (2.0, 1.0);
    assert_eq!(chosen(order, &[&[0.0, 0.0, 4.0], &[0.0, 2.5, 4.0]]), [2, 1]);
}

#[test]
fn what_is_impossible_stays_so_whatever_it_is_owed() {
    let change = |p: &mut SamplingParams| {
        (p.presence_penalty, p.frequency_penalty) = (-2.0, -2.0);
        p.logit_bias = [(1, 100.0)].into();
    };
    let mut sampler = sampler(change);
    assert_eq!(sampler.sample(&[0.0, 0.0]).unwrap(), 1);
    for _ in 0..20 {
        assert_eq!(sampler.sample(&[0.0, f32::NEG_INFINITY]).unwrap(), 0);
    }
}

#[test]
fn a_bias_forces_bans_and_comes_before_everything_else() {
    let row = bumpy(60);
    let biased = |bias: f32, change: fn(&mut SamplingParams)| {
        let mut p = params(change);
        p.logit_bias = [(7, bias)].into();
        let mut sampler = Sampler::new(&p, &[]).unwrap();
        let mut ids: Vec<u32> = (0..2000).map(|_| sampler.sample(&row).unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(biased(100.0, |_| ()), [7]);
    assert_eq!(biased(100.0, |p| p.frequency_penalty = 0.01), [7]);
    assert_eq!(biased(100.0, |p| p.top_k = 1), [7]);
    let without = biased(-100.0, |_| ());
    assert!(without.len() > 20 && !without.contains(&7), "{without:?}");
    // A processor sees what the bias made of the row, and has the last word.
    let mut sampler = self::biased(1, f32::NEG_INFINITY, |p| {
        (p.temperature, p.logit_bias) = (0.0, [(1, 100.0), (2, 0.5), (2, 0.75)].into());
    });
    assert_eq!(sampler.sample(&[3.0, 3.0, 2.0]).unwrap(), 2);
}

#[test]
fn ids_can_be_banned_unless_nothing_else_is_left() {
    let mut greedy = Sampler::new(&SamplingParams::greedy(), &[]).unwrap();
    let row = [1.0, 3.0, 2.0];
    assert_eq!(greedy.sample_except(&row, &[1]).unwrap(), 2);
    assert_eq!(greedy.sample_except(&row, &[1, 2, 9, 1]).unwrap(), 0);
    assert_eq!(greedy.sample_except(&row, &[0, 1, 2, 1]).unwrap(), 1);
    let forbidden = [f32::NEG_INFINITY, 0.5, 0.75];
    assert_eq!(greedy.sample_except(&forbidden, &[2]).unwrap(), 1);
    assert_eq!(greedy.sample_except(&forbidden, &[2, 1]).unwrap(), 2);
}

/// Adds a bias to one token, or forbids it, and remembers what was chosen.
#[derive(Debug)]
struct Bias {
    id: usize,
    bias: f32,
    chosen: Vec<u32>,
}

impl LogitsProcessor for Bias {
    fn process(&mut self, logits: &mut [f32]) {
        logits[self.id] += self.bias;
        // Once it was chosen, everything else is forbidden.
        if self.chosen.contains(&0) {
            logits[1..].fill(f32::NEG_INFINITY);
        }
    }

    fn accept(&mut self, id: u32) {
        self.chosen.push(id);
    }
}

fn biased(id: usize, bias: f32, change: impl FnOnce(&mut SamplingParams)) -> Sampler {
    let bias = Bias {
        id,
        bias,
        chosen: Vec::new(),
    };
    sampler(change).with_processor(Some(Box::new(bias)))
}

#[test]
fn a_processor_bans_and_biases_before_everything_else() {
    let logits = [1.0, 3.0, 2.0];
    let greedy = |p: &mut SamplingParams| p.temperature = 0.0;
    assert_eq!(
        biased(1, f32::NEG_INFINITY, greedy)
            .sample(&logits)
            .unwrap(),
        2
    );
    assert_eq!(biased(2, 1.5, greedy).sample(&logits).unwrap(), 2);
    // Filters go by the logits that it leaves: the best one is out of the way, so that top-k keeps the next.
    let top = |p: &mut SamplingParams| p.top_k = 1;
    assert_eq!(
        biased(1, f32::NEG_INFINITY, top).sample(&logits).unwrap(),
        2
    );
    let mut twice = biased(0, 5.0, greedy);
    assert_eq!(twice.sample(&logits).unwrap(), 0);
    assert_eq!(
        twice.sample(&[0.0, 9.0, 9.0]).unwrap(),
        0,
        "it knows what was chosen"
    );
    for (bias, words) in [
        (f32::INFINITY, "the logit of token 1 is inf"),
        (f32::NAN, "is NaN"),
    ] {
        let error = biased(1, bias, greedy)
            .sample(&logits)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}
