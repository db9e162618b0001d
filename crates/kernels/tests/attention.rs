//! Attention over dense and packed pages against the oracle, at every level that this CPU has.

mod common;
mod oracles;

use common::{at_each_level, bits, cpus};
use half::bf16;
use oracles::attention::{Query, attention as oracle};
use sparamx_cpu::{Cpu, Isa};
use sparamx_format::DenseBf16;
use sparamx_kernels::attention::{
    KvPages, PAGE_TOKENS, PackedPages, Packing, Page, PageDtype, PageShape, Params, PruneRule,
    Task, attention, read_key, read_value, write_key, write_value,
};
use sparamx_kernels::catalog::select;
use sparamx_kernels::linear::{Activation, WeightFormat};
use sparamx_kernels::{KernelError, Rows, RowsMut, Runtime};
use sparamx_testkit::{Canary, Random, activations, fast};

/// What slots hold that nobody may look at: finite, but ruinous.
const POISON: f32 = 3e38;

/// The cache of one sequence.
struct Pages {
    shape: PageShape,
    keys: Vec<Vec<Vec<u16>>>,
    values: Vec<Vec<Vec<u16>>>,
    /// All full pages once more, if they are packed.
    packed: Option<PackedPages>,
}

/// Queries see a page in packed form from the page after the next on; not the first ones, and not every fifth, so that forms
/// change within a chunk.
fn is_packed(page: usize, query_page: usize) -> bool {
    page + 1 < query_page && !page.is_multiple_of(5)
}

impl KvPages for Pages {
    fn precision(&self) -> PageDtype {
        self.packed
            .as_ref()
            .map_or(PageDtype::Bf16, |packed| packed.packing().precision)
    }

    fn key(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        match &self.packed {
            Some(packed) if is_packed(page, query_page) => {
                packed.key(page * self.keys.len() + kv_head)
            }
            _ => Page::Dense(&self.keys[kv_head][page]),
        }
    }

    fn value(&self, kv_head: usize, page: usize, query_page: usize) -> Page<'_> {
        match &self.packed {
            Some(packed) if is_packed(page, query_page) => {
                packed.value(page * self.keys.len() + kv_head)
            }
            _ => Page::Dense(&self.values[kv_head][page]),
        }
    }
}

impl Pages {
    /// Random keys and values at `seen`, poison everywhere else.
    fn new(
        params: &Params,
        packing: Option<Packing>,
        seen: std::ops::Range<usize>,
        random: &mut Random,
    ) -> Self {
        let shape = PageShape {
            head_dim: params.head_dim,
        };
        let pages = |elems| {
            vec![
                vec![vec![bf16::from_f32(POISON).to_bits(); elems]; seen.end.div_ceil(PAGE_TOKENS)];
                params.kv_heads
            ]
        };
        let (mut keys, mut values) = (pages(shape.key_elems()), pages(shape.value_elems()));
        // A page is packed when all of it is there, also what the window has left behind since.
        let first = packing.map_or(seen.start, |_| seen.start / PAGE_TOKENS * PAGE_TOKENS);
        for head in 0..params.kv_heads {
            for position in first..seen.end {
                let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
                let kv: Vec<f32> = (0..2 * params.head_dim).map(|_| random.signed()).collect();
                write_key(&mut keys[head][page], shape, slot, &kv[..params.head_dim]);
                write_value(&mut values[head][page], shape, slot, &kv[params.head_dim..]);
            }
        }
        let mut pages = Self {
            shape,
            keys,
            values,
            packed: None,
        };
        pages.packed = packing.map(|packing| pages.pack(packing, first..seen.end, random));
        pages
    }

    fn pack(
        &self,
        packing: Packing,
        there: std::ops::Range<usize>,
        random: &mut Random,
    ) -> PackedPages {
        let (heads, count) = (self.keys.len(), there.end.div_ceil(PAGE_TOKENS));
        let mut packed = PackedPages::new(packing, heads * count).unwrap();
        let cpu = Cpu::detect().unwrap();
        let query = activations(1, self.shape.head_dim, random);
        for (pair, mut out) in packed.pairs_mut().enumerate() {
            let (page, head) = (pair / heads, pair % heads);
            let positions = page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS;
            if there.start <= positions.start && positions.end <= there.end {
                let (key, value) = (&self.keys[head][page], &self.values[head][page]);
                out.pack(&cpu, key, value, &query);
            }
        }
        packed
    }

    /// Keys and values of some positions, `[positions, head_dim]`, as a query at the last of them sees them; and which of them
    /// are in int8 pages, as the oracle wants to know it.
    fn read(
        &self,
        head: usize,
        positions: std::ops::RangeInclusive<usize>,
    ) -> (Vec<f32>, Vec<f32>, Vec<Option<usize>>) {
        let dim = self.shape.head_dim;
        let query_page = positions.end() / PAGE_TOKENS;
        let mut keys = vec![0.0; positions.clone().count() * dim];
        let mut values = keys.clone();
        let mut int8 = Vec::new();
        for (position, (key, value)) in
            positions.zip(keys.chunks_mut(dim).zip(values.chunks_mut(dim)))
        {
            let (page, slot) = (position / PAGE_TOKENS, position % PAGE_TOKENS);
            match self.key(head, page, query_page) {
                Page::Dense(lines) => read_key(lines, self.shape, slot, key),
                Page::Packed(page) => page.read_key(slot, key),
            }
            match self.value(head, page, query_page) {
                Page::Dense(lines) => read_value(lines, self.shape, slot, value),
                Page::Packed(page) => page.read_value(slot, value),
            }
            let levels = self.precision() == PageDtype::Int8 && is_packed(page, query_page);
            int8.push(levels.then_some(page));
        }
        (keys, values, int8)
    }
}

/// Sequences, each with some tokens to attend from a position on.
#[derive(Clone)]
struct Case {
    params: Params,
    /// Tokens and position of the first.
    tasks: Vec<(usize, usize)>,
    packing: Option<Packing>,
}

impl Case {
    fn new(heads: usize, kv_heads: usize, head_dim: usize, tasks: &[(usize, usize)]) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self {
            params: Params {
                heads,
                kv_heads,
                head_dim,
                scale,
                window: None,
            },
            tasks: tasks.to_vec(),
            packing: None,
        }
    }

    fn packed(
        mut self,
        precision: PageDtype,
        [key_sparsity, value_sparsity]: [f32; 2],
        rule: PruneRule,
    ) -> Self {
        let shape = PageShape {
            head_dim: self.params.head_dim,
        };
        let packing = Packing::new(shape, precision, key_sparsity, value_sparsity, rule);
        self.packing = Some(packing);
        self
    }

    fn window(mut self, window: usize) -> Self {
        self.params.window = Some(window);
        self
    }

    fn width(&self) -> usize {
        self.params.heads * self.params.head_dim
    }

    fn rows(&self) -> usize {
        self.tasks.iter().map(|(rows, _)| rows).sum()
    }

    fn oldest(&self, position: usize) -> usize {
        self.params
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Params {
            heads,
            kv_heads,
            head_dim,
            window,
            ..
        } = self.params;
        write!(
            f,
            "{heads} heads of {head_dim}, {kv_heads} kv heads, window {window:?}, (tokens, start) {:?}, {:?}",
            self.tasks, self.packing
        )
    }
}

/// Queries and caches of a case.
struct Inputs {
    q: Vec<f32>,
    stride: usize,
    caches: Vec<Pages>,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut random = Random::new((case.width() + case.rows()) as u64);
        let stride = case.width() + 3;
        let mut q = activations(case.rows(), stride, &mut random);
        // What lies between the rows must not be read as if it belonged to them.
        q.chunks_mut(stride)
            .for_each(|row| row[case.width()..].fill(f32::NAN));
        let cache = |&(rows, start): &(usize, usize)| {
            let seen = case.oldest(start)..start + rows;
            Pages::new(&case.params, case.packing, seen, &mut random)
        };
        Self {
            caches: case.tasks.iter().map(cache).collect(),
            q,
            stride,
        }
    }

    fn q(&self, rows: usize, width: usize) -> Rows<'_> {
        Rows::with_stride(&self.q, rows, width, self.stride).unwrap()
    }

    fn tasks(&self, case: &Case) -> Vec<Task<'_>> {
        let mut first_row = 0;
        let task = |(&(rows, start), kv): (&(usize, usize), _)| {
            first_row += rows;
            Task {
                first_row: first_row - rows,
                rows,
                start,
                kv,
            }
        };
        case.tasks
            .iter()
            .zip(self.caches.iter().map(|cache| cache as &dyn KvPages))
            .map(task)
            .collect()
    }
}

fn output(out: &mut Canary, rows: usize, cols: usize) -> RowsMut<'_> {
    let stride = out.stride;
    RowsMut::with_stride(&mut out.data, rows, cols, stride).unwrap()
}

fn compute(rt: &Runtime, case: &Case, inputs: &Inputs, tasks: &[Task<'_>]) -> Canary {
    let (rows, width) = (case.rows(), case.width());
    let mut out = Canary::new(rows, width, 5);
    attention(
        rt,
        &case.params,
        inputs.q(rows, width),
        tasks,
        output(&mut out, rows, width),
    )
    .unwrap();
    out
}

fn check(rt: &Runtime, case: &Case) {
    let context = format!("{}: {case}", rt.cpu().isa());
    let inputs = Inputs::new(case);
    let out = compute(rt, case, &inputs, &inputs.tasks(case));
    out.check(&context);
    let Params {
        heads,
        kv_heads,
        head_dim,
        scale,
        ..
    } = case.params;
    let kernel = select(rt.cpu().features(), WeightFormat::DenseBf16, usize::MAX);
    for (task, cache) in inputs.tasks(case).iter().zip(&inputs.caches) {
        for (row, head) in (0..task.rows).flat_map(|row| (0..heads).map(move |head| (row, head))) {
            let position = task.start + row;
            let seen = case.oldest(position)..=position;
            let pages = position / PAGE_TOKENS - seen.start() / PAGE_TOKENS + 1;
            let (keys, values, int8) = cache.read(head / (heads / kv_heads), seen);
            let cols = head * head_dim..(head + 1) * head_dim;
            let q = &inputs
                .q(case.rows(), case.width())
                .row(task.first_row + row)[cols.clone()];
            let query = Query {
                q,
                scale,
                bf16: kernel.activation == Activation::Bf16,
                pages,
                int8: &int8,
            };
            let want = oracle(query, &keys, &values);
            let got = &out.row(task.first_row + row)[cols];
            for (dim, (want, &got)) in want.iter().zip(got).enumerate() {
                want.check(
                    got,
                    &format!("{context}, position {position}, head {head}, element {dim}"),
                );
            }
        }
    }
}

/// All cases that one level must pass.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let dims: &[usize] = if fast() {
        &[8, 40]
    } else {
        &[1, 8, 40, 64, 80, 96, 128, 160, 256, 300]
    };
    for &dim in dims {
        cases.push(Case::new(
            4,
            2,
            dim,
            &[(5, 0), (1, 63), (1, 64), (7, 120), (3, 510)],
        ));
    }
    let counts: Vec<usize> = if fast() {
        vec![1, 65]
    } else {
        (1..=130).collect()
    };
    for tokens in counts {
        cases.push(Case::new(3, 1, 40, &[(tokens, 0)]));
    }
    let windows: &[usize] = if fast() {
        &[1, 65]
    } else {
        &[1, 2, 63, 64, 65, 100, 512, 600]
    };
    for &window in windows {
        cases.push(Case::new(4, 2, 32, &[(1, 0), (20, 500), (1, 1100), (9, 3)]).window(window));
    }
    // A group larger than a block, one head for each kv head, one token far into a sequence.
    cases.push(Case::new(40, 1, 16, &[(3, 70)]));
    cases.push(Case::new(5, 5, 24, &[(9, 60)]));
    cases.push(Case::new(
        4,
        1,
        64,
        &[(1, if fast() { 1100 } else { 5000 })],
    ));
    cases
}

/// Cases with packed pages: every precision and density, with heads of every kind of padding, and all rules.
fn packed_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let dims: &[usize] = if fast() {
        &[20, 64]
    } else {
        &[1, 20, 64, 80, 128, 256, 300]
    };
    let sparsities: &[[f32; 2]] = if fast() {
        &[[0.5, 0.7], [0.0, 0.5]]
    } else {
        &[
            [0.0, 0.0],
            [0.5, 0.5],
            [0.3, 0.7],
            [0.0, 0.5],
            [0.9, 0.0],
            [0.99, 0.99],
            [1.0, 1.0],
        ]
    };
    for precision in [PageDtype::Bf16, PageDtype::Int8] {
        for (i, &dim) in dims.iter().enumerate() {
            for (j, &sparsity) in sparsities.iter().enumerate() {
                let case = Case::new(4, 1, dim, &[(1, 63), (1, 200), (4, 446), (1, 640)]);
                let rule = PruneRule::ALL[(i + j) % PruneRule::ALL.len()];
                cases.push(case.packed(precision, sparsity, rule));
            }
        }
        let window = Case::new(4, 2, 40, &[(70, 720), (1, 1100)]).window(300);
        cases.push(window.packed(precision, [0.5; 2], PruneRule::Token));
        // More rows than a block has, whatever the tokens.
        let wide = Case::new(40, 1, 16, &[(3, 350)]);
        cases.push(wide.packed(precision, [0.5; 2], PruneRule::Magnitude));
    }
    cases
}

#[test]
fn attention_over_packed_pages_agrees_with_the_oracle() {
    at_each_level("packed_pages", &Isa::ALL, |cpu| {
        let rt = Runtime::new(cpu, 2).unwrap();
        packed_cases().iter().for_each(|case| check(&rt, case));
        // One token takes nearly all, so that the levels of the others are small or 0.
        let mut sharp = Case::new(4, 2, 64, &[(40, 400)]);
        sharp.params.scale = 1e3;
        check(
            &rt,
            &sharp.packed(PageDtype::Int8, [0.5; 2], PruneRule::Query),
        );
    });
}

#[test]
fn attention_agrees_with_the_oracle() {
    at_each_level("attention", &Isa::ALL, |cpu| {
        let rt = Runtime::new(cpu, 2).unwrap();
        cases().iter().for_each(|case| check(&rt, case));
        // Scores from -1e4 to 1e4: nearly always one token takes all.
        let mut sharp = Case::new(4, 2, 64, &[(40, 100)]);
        sharp.params.scale = 1e3;
        check(&rt, &sharp);
        // No score matters: the mean of the values.
        sharp.params.scale = 0.0;
        check(&rt, &sharp);
    });
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let long = if fast() { 1100 } else { 4000 };
    let cases = [
        Case::new(4, 1, 64, &[(1, long)]),
        Case::new(4, 2, 40, &[(1, 700), (1, 20), (1, long)]),
        Case::new(4, 2, 64, &[(90, 500)]),
        Case::new(2, 2, 64, &[(3, long)]).window(1000),
        Case::new(4, 1, 64, &[(90, 700), (1, long)]).packed(
            PageDtype::Bf16,
            [0.5, 0.3],
            PruneRule::Magnitude,
        ),
        Case::new(4, 1, 64, &[(90, 700), (1, long)]).packed(
            PageDtype::Int8,
            [0.5, 0.0],
            PruneRule::Token,
        ),
    ];
    for (cpu, case) in cpus(&Isa::ALL).flat_map(|cpu| cases.iter().map(move |case| (cpu, case))) {
        let inputs = Inputs::new(case);
        let results = [1, 2, 3, 8].map(|threads| {
            let rt = Runtime::new(cpu, threads).unwrap();
            bits(&compute(&rt, case, &inputs, &inputs.tasks(case)).data)
        });
        assert!(
            results.iter().all(|r| *r == results[0]),
            "{}: {case}",
            cpu.isa()
        );
    }
}

/// A prompt at once, in pieces, and token by token.
#[test]
fn a_row_has_the_same_bits_in_any_company() {
    let tokens = if fast() { 20 } else { 130 };
    let cases = [
        Case::new(4, 2, 40, &[(tokens, 450)]),
        Case::new(3, 1, 64, &[(tokens, 500)]).window(70),
        // The oldest page changes inside a block, and another chunk follows.
        Case::new(3, 1, 64, &[(tokens, 720)]).window(600),
        Case::new(4, 1, 64, &[(tokens, 620)]).packed(PageDtype::Bf16, [0.5, 0.3], PruneRule::Token),
        Case::new(3, 1, 64, &[(tokens, 620)]).window(400).packed(
            PageDtype::Int8,
            [0.3, 0.0],
            PruneRule::Token,
        ),
    ];
    for (cpu, case) in cpus(&Isa::ALL).flat_map(|cpu| cases.iter().map(move |case| (cpu, case))) {
        let rt = Runtime::new(cpu, 3).unwrap();
        let inputs = Inputs::new(case);
        let whole = compute(&rt, case, &inputs, &inputs.tasks(case));
        let [(rows, start)] = case.tasks[..] else {
            unreachable!("one task each")
        };
        for piece in [1, 7, 64] {
            let pieces: Vec<Task<'_>> = (0..rows)
                .step_by(piece)
                .map(|first| Task {
                    first_row: first,
                    rows: piece.min(rows - first),
                    start: start + first,
                    kv: &inputs.caches[0],
                })
                .collect();
            let together = compute(&rt, case, &inputs, &pieces);
            assert!(
                bits(&together.data) == bits(&whole.data),
                "{}: {case} in pieces of {piece}",
                cpu.isa()
            );
            let mut alone = Canary::new(rows, case.width(), 5);
            for task in pieces {
                let (q, out) = (
                    inputs.q(rows, case.width()),
                    output(&mut alone, rows, case.width()),
                );
                attention(&rt, &case.params, q, &[task], out).unwrap();
            }
            assert!(
                bits(&alone.data) == bits(&whole.data),
                "{}: {case}, {piece} a call",
                cpu.isa()
            );
        }
    }
}

#[test]
fn rows_of_no_task_are_left_alone() {
    let rt = Runtime::new(Cpu::detect().unwrap(), 2).unwrap();
    let case = Case::new(2, 1, 16, &[(6, 3)]);
    let inputs = Inputs::new(&case);
    let [whole] = inputs.tasks(&case)[..] else {
        unreachable!("one task")
    };
    let untouched = bits(&Canary::new(6, case.width(), 5).data);
    assert_eq!(bits(&compute(&rt, &case, &inputs, &[]).data), untouched);
    assert_eq!(
        bits(&compute(&rt, &case, &inputs, &[Task { rows: 0, ..whole }]).data),
        untouched
    );
    let middle = [Task {
        first_row: 2,
        rows: 2,
        start: 5,
        ..whole
    }];
    let out = compute(&rt, &case, &inputs, &middle);
    let all = compute(&rt, &case, &inputs, &[whole]);
    for i in 0..6 {
        let want = if (2..4).contains(&i) {
            bits(all.row(i))
        } else {
            untouched[..case.width()].to_vec()
        };
        assert_eq!(bits(out.row(i)), want, "row {i}");
    }
}

#[test]
fn a_row_without_a_finite_score_is_nan() {
    for cpu in cpus(&Isa::ALL) {
        let rt = Runtime::new(cpu, 1).unwrap();
        let case = Case::new(1, 1, 8, &[(2, 70)]);
        let mut inputs = Inputs::new(&case);
        inputs.q[..8].fill(f32::NAN);
        let out = compute(&rt, &case, &inputs, &inputs.tasks(&case));
        assert!(
            out.row(0).iter().all(|x| x.is_nan()),
            "{}: {:?}",
            cpu.isa(),
            out.row(0)
        );
        assert!(
            out.row(1).iter().all(|x| x.is_finite()),
            "{}: {:?}",
            cpu.isa(),
            out.row(1)
        );
    }
}

/// A page is the weight that the format crate makes of the same rows.
#[test]
fn pages_are_in_strip_order() {
    for head_dim in [1, 2, 15, 16, 31, 33, 40, 64, 100, 128] {
        let shape = PageShape { head_dim };
        let mut random = Random::new(head_dim as u64);
        let rows: Vec<f32> = (0..PAGE_TOKENS * head_dim)
            .map(|_| random.signed())
            .collect();
        let (mut key, mut value) = (vec![0; shape.key_elems()], vec![0; shape.value_elems()]);
        for (slot, row) in rows.chunks_exact(head_dim).enumerate() {
            write_key(&mut key, shape, slot, row);
            write_value(&mut value, shape, slot, row);
        }
        let rounded: Vec<u16> = rows.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
        let transposed: Vec<u16> = (0..rounded.len())
            .map(|at| rounded[at % PAGE_TOKENS * head_dim + at / PAGE_TOKENS])
            .collect();
        assert_eq!(
            key,
            DenseBf16::from_rows(&rounded, PAGE_TOKENS, head_dim)
                .unwrap()
                .lines(),
            "keys of {head_dim}"
        );
        assert_eq!(
            value,
            DenseBf16::from_rows(&transposed, head_dim, PAGE_TOKENS)
                .unwrap()
                .lines(),
            "values of {head_dim}"
        );
        let mut back = vec![0.0; head_dim];
        for (slot, row) in rounded.chunks_exact(head_dim).enumerate() {
            read_key(&key, shape, slot, &mut back);
            assert!(
                back.iter()
                    .zip(row)
                    .all(|(x, want)| bf16::from_f32(*x).to_bits() == *want),
                "key {slot}"
            );
            read_value(&value, shape, slot, &mut back);
            assert!(
                back.iter()
                    .zip(row)
                    .all(|(x, want)| bf16::from_f32(*x).to_bits() == *want),
                "value {slot}"
            );
        }
    }
}

#[test]
#[should_panic(expected = "elements of a page")]
fn a_page_of_another_size_is_a_bug() {
    let rt = Runtime::new(Cpu::detect().unwrap(), 1).unwrap();
    let case = Case::new(1, 1, 8, &[(1, 0)]);
    let mut inputs = Inputs::new(&case);
    inputs.caches[0].values[0][0].pop();
    compute(&rt, &case, &inputs, &inputs.tasks(&case));
}

#[test]
fn calls_that_do_not_fit_are_refused() {
    let rt = Runtime::new(Cpu::detect().unwrap(), 1).unwrap();
    let case = Case::new(4, 2, 8, &[(4, 0)]);
    let inputs = Inputs::new(&case);
    let [task] = inputs.tasks(&case)[..] else {
        unreachable!("one task")
    };
    let q = vec![0.0; 4 * 33];
    let refused = |params: Params,
                   tasks: &[Task<'_>],
                   (cols, out_rows, out_cols): (usize, usize, usize),
                   words: &str| {
        let mut out = vec![0.0; 4 * 33];
        let result = attention(
            &rt,
            &params,
            Rows::new(&q, 4, cols),
            tasks,
            RowsMut::new(&mut out, out_rows, out_cols),
        );
        let error = result.unwrap_err();
        assert!(
            matches!(error, KernelError::Mismatch { .. }) && error.to_string().contains(words),
            "{error} without {words:?}"
        );
    };
    let (p, fits) = (case.params, (32, 4, 32));
    refused(Params { heads: 0, ..p }, &[task], fits, "heads");
    refused(Params { kv_heads: 0, ..p }, &[task], fits, "kv heads");
    refused(Params { kv_heads: 3, ..p }, &[task], fits, "whole groups");
    refused(
        Params { head_dim: 0, ..p },
        &[task],
        fits,
        "elements of a head",
    );
    refused(
        Params {
            head_dim: usize::MAX,
            ..p
        },
        &[task],
        fits,
        "columns of q",
    );
    refused(
        Params {
            window: Some(0),
            ..p
        },
        &[task],
        fits,
        "window",
    );
    refused(p, &[task], (33, 4, 32), "columns of q");
    refused(p, &[task], (32, 4, 33), "columns of the output");
    refused(p, &[task], (32, 3, 32), "rows of q");
    refused(p, &[Task { rows: 5, ..task }], fits, "end of a task");
    refused(
        p,
        &[Task {
            rows: usize::MAX,
            first_row: 1,
            ..task
        }],
        fits,
        "end of a task",
    );
    refused(
        p,
        &[
            Task { rows: 2, ..task },
            Task {
                first_row: 1,
                rows: 1,
                ..task
            },
        ],
        fits,
        "first row of a task",
    );
    refused(
        p,
        &[Task {
            start: usize::MAX - 2,
            ..task
        }],
        fits,
        "positions",
    );
}
