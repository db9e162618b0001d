//! Runs AMX and AVX-512 instructions and compares them with scalar code: the
//! test of the emulator itself, to be run on hardware too where there is any.
//!
//! Build: `rustc --edition 2024 -O -C target-feature=+crt-static amx_check.rs`
//! Run:   `run-in-amx-emulator ./amx_check [cpuid|check|threads|bench]...`
//!
//! Every instruction is chosen at run time from CPUID, so the program builds
//! anywhere; on a CPU without AMX it says so and ends with code 77.

use std::arch::asm;
use std::arch::x86_64::*;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ROWS: usize = 16;

#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq)]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    colsb: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    fn full() -> Self {
        let mut c = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            colsb: [0; 16],
            rows: [0; 16],
        };
        for t in 0..8 {
            c.colsb[t] = 64;
            c.rows[t] = 16;
        }
        c
    }
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Tile([u32; 256]);

impl Tile {
    fn zero() -> Self {
        Tile([0; 256])
    }
    fn bytes(&self) -> &[u8; 1024] {
        unsafe { &*(self as *const Self as *const [u8; 1024]) }
    }
    fn bytes_mut(&mut self) -> &mut [u8; 1024] {
        unsafe { &mut *(self as *mut Self as *mut [u8; 1024]) }
    }
    fn halves(&self) -> &[u16; 512] {
        unsafe { &*(self as *const Self as *const [u16; 512]) }
    }
    fn halves_mut(&mut self) -> &mut [u16; 512] {
        unsafe { &mut *(self as *mut Self as *mut [u16; 512]) }
    }
}

/// A small generator of random numbers (xorshift64*), so results repeat.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// A bf16 in about [-2, 2), sometimes zero, a denormal or large.
    fn bf16(&mut self) -> u16 {
        let r = self.next();
        match r % 32 {
            0 => 0,
            1 => (r >> 20) as u16 & 0x807f,
            2 => ((r >> 20) as u16 & 0x8fff) | 0x4000,
            _ => {
                let f = ((r >> 40) as f32 / (1u64 << 24) as f32) * 4.0 - 2.0;
                (f.to_bits() >> 16) as u16
            }
        }
    }
    fn fill_bf16(&mut self, t: &mut Tile) {
        for x in t.halves_mut() {
            *x = self.bf16();
        }
    }
    fn fill_bytes(&mut self, t: &mut Tile) {
        for x in t.bytes_mut() {
            *x = (self.next() >> 32) as u8;
        }
    }
}

unsafe fn load_config(c: &TileConfig) {
    unsafe { asm!("ldtilecfg [{0}]", in(reg) c, options(nostack, preserves_flags, readonly)) }
}

unsafe fn release() {
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
}

macro_rules! dot_fn {
    ($name:ident, $op:literal) => {
        /// c += a * b on tiles 0, 1, 2.
        unsafe fn $name(c: &mut Tile, a: &Tile, b: &Tile) {
            unsafe {
                asm!(
                    "tileloadd tmm0, [{c} + {s}*1]",
                    "tileloadd tmm1, [{a} + {s}*1]",
                    "tileloadd tmm2, [{b} + {s}*1]",
                    concat!($op, " tmm0, tmm1, tmm2"),
                    "tilestored [{c} + {s}*1], tmm0",
                    c = in(reg) c.0.as_mut_ptr(),
                    a = in(reg) a.0.as_ptr(),
                    b = in(reg) b.0.as_ptr(),
                    s = in(reg) 64usize,
                    options(nostack, preserves_flags)
                )
            }
        }
    };
}
dot_fn!(tdpbf16ps, "tdpbf16ps");
dot_fn!(tdpbssd, "tdpbssd");
dot_fn!(tdpbsud, "tdpbsud");
dot_fn!(tdpbusd, "tdpbusd");
dot_fn!(tdpbuud, "tdpbuud");

fn bf(x: u16) -> f32 {
    daz(f32::from_bits((x as u32) << 16))
}

fn daz(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

fn fma(a: f32, b: f32, c: f32) -> f32 {
    daz(a.mul_add(b, c))
}

/// The manual's TDPBF16PS: even and odd products are summed apart over k with
/// fused multiply-adds, then joined and added to c; denormals count as zero.
fn ref_bf16(c: &mut Tile, a: &Tile, b: &Tile) {
    let (a, b) = (a.halves(), b.halves());
    for m in 0..ROWS {
        for n in 0..16 {
            let (mut even, mut odd) = (0.0f32, 0.0f32);
            for k in 0..16 {
                even = fma(bf(a[m * 32 + 2 * k]), bf(b[k * 32 + 2 * n]), even);
                odd = fma(bf(a[m * 32 + 2 * k + 1]), bf(b[k * 32 + 2 * n + 1]), odd);
            }
            let old = daz(f32::from_bits(c.0[m * 16 + n]));
            c.0[m * 16 + n] = daz(old + daz(even + odd)).to_bits();
        }
    }
}

/// The same product summed in f64, for a check that does not depend on order.
fn ref_bf16_f64(c: &Tile, a: &Tile, b: &Tile) -> Vec<(f64, f64)> {
    let (a, b) = (a.halves(), b.halves());
    let mut out = Vec::new();
    for m in 0..ROWS {
        for n in 0..16 {
            let mut s = f32::from_bits(c.0[m * 16 + n]) as f64;
            let mut size = s.abs();
            for k in 0..16 {
                for e in 0..2 {
                    let p = bf(a[m * 32 + 2 * k + e]) as f64 * bf(b[k * 32 + 2 * n + e]) as f64;
                    s += p;
                    size += p.abs();
                }
            }
            out.push((s, size));
        }
    }
    out
}

fn ref_int8(c: &mut Tile, a: &Tile, b: &Tile, a_signed: bool, b_signed: bool) {
    let get = |x: u8, s: bool| if s { x as i8 as i32 } else { x as i32 };
    for m in 0..ROWS {
        for n in 0..16 {
            let mut sum = c.0[m * 16 + n] as i32;
            for k in 0..16 {
                for e in 0..4 {
                    let x = get(a.bytes()[m * 64 + 4 * k + e], a_signed);
                    let y = get(b.bytes()[k * 64 + 4 * n + e], b_signed);
                    sum = sum.wrapping_add(x * y);
                }
            }
            c.0[m * 16 + n] = sum as u32;
        }
    }
}

struct Report {
    failed: usize,
}

impl Report {
    fn line(&mut self, name: &str, ok: bool, note: &str) {
        println!(
            "{} {name}{}{note}",
            if ok { "PASS" } else { "FAIL" },
            if note.is_empty() { "" } else { ": " }
        );
        if !ok {
            self.failed += 1;
        }
    }
}

fn check_bf16(r: &mut Report, rng: &mut Rng) {
    unsafe { load_config(&TileConfig::full()) };
    let (mut exact, mut close, rounds) = (0, true, 200);
    for _ in 0..rounds {
        let (mut a, mut b, mut c) = (Tile::zero(), Tile::zero(), Tile::zero());
        rng.fill_bf16(&mut a);
        rng.fill_bf16(&mut b);
        for x in c.0.iter_mut() {
            *x = (rng.bf16() as u32) << 16;
        }
        let sums = ref_bf16_f64(&c, &a, &b);
        let mut want = c;
        ref_bf16(&mut want, &a, &b);
        unsafe { tdpbf16ps(&mut c, &a, &b) };
        exact += (c.0 == want.0) as usize;
        for (got, (s, size)) in c.0.iter().zip(sums) {
            close &= (f32::from_bits(*got) as f64 - s).abs() <= size * 1e-5 + 1e-37;
        }
    }
    unsafe { release() };
    r.line("tdpbf16ps within tolerance", close, "");
    r.line(
        "tdpbf16ps bit for bit",
        exact == rounds,
        &format!("{exact} of {rounds} tiles equal to the manual's order of sums"),
    );
}

fn check_int8(r: &mut Report, rng: &mut Rng) {
    type Dot = unsafe fn(&mut Tile, &Tile, &Tile);
    let kinds: [(&str, Dot, bool, bool); 4] = [
        ("tdpbssd", tdpbssd, true, true),
        ("tdpbsud", tdpbsud, true, false),
        ("tdpbusd", tdpbusd, false, true),
        ("tdpbuud", tdpbuud, false, false),
    ];
    for (name, dot, sa, sb) in kinds {
        unsafe { load_config(&TileConfig::full()) };
        let mut ok = true;
        for _ in 0..200 {
            let (mut a, mut b, mut c) = (Tile::zero(), Tile::zero(), Tile::zero());
            rng.fill_bytes(&mut a);
            rng.fill_bytes(&mut b);
            rng.fill_bytes(&mut c);
            let mut want = c;
            ref_int8(&mut want, &a, &b, sa, sb);
            unsafe { dot(&mut c, &a, &b) };
            ok &= c.0 == want.0;
        }
        unsafe { release() };
        r.line(name, ok, "exact");
    }
}

/// Tiles with fewer rows and columns, and a stride that is not 64.
fn check_shapes(r: &mut Report, rng: &mut Rng) {
    let mut ok = true;
    let mut src = vec![0u8; 16 * 200];
    for x in src.iter_mut() {
        *x = rng.next() as u8;
    }
    for rows in 1..=16usize {
        for cols in (4..=64usize).step_by(4) {
            let mut cfg = TileConfig::full();
            cfg.rows[3] = rows as u8;
            cfg.colsb[3] = cols as u16;
            let mut dst = vec![0xa5u8; 16 * 100];
            unsafe {
                load_config(&cfg);
                asm!(
                    "tileloadd tmm3, [{s} + {ss}*1]",
                    "tilestored [{d} + {ds}*1], tmm3",
                    s = in(reg) src.as_ptr(), ss = in(reg) 200usize,
                    d = in(reg) dst.as_mut_ptr(), ds = in(reg) 100usize,
                    options(nostack, preserves_flags)
                );
                release();
            }
            for m in 0..16 {
                for i in 0..100 {
                    let want = if m < rows && i < cols {
                        src[m * 200 + i]
                    } else {
                        0xa5
                    };
                    ok &= dst[m * 100 + i] == want;
                }
            }
        }
    }
    r.line("tileloadd and tilestored, all shapes", ok, "");
    let mut t = Tile::zero();
    rng.fill_bytes(&mut t);
    unsafe {
        load_config(&TileConfig::full());
        asm!("tileloadd tmm5, [{p} + {s}*1]", "tilezero tmm5", "tilestored [{p} + {s}*1], tmm5",
            p = in(reg) t.0.as_mut_ptr(), s = in(reg) 64usize, options(nostack, preserves_flags));
        release();
    }
    r.line("tilezero", t.0.iter().all(|&x| x == 0), "");
    let mut copy = Tile::zero();
    rng.fill_bytes(&mut t);
    unsafe {
        load_config(&TileConfig::full());
        asm!("tileloaddt1 tmm1, [{p} + {s}*1]", "tilestored [{q} + {s}*1], tmm1",
            p = in(reg) t.0.as_ptr(), q = in(reg) copy.0.as_mut_ptr(), s = in(reg) 64usize,
            options(nostack, preserves_flags));
        release();
    }
    r.line("tileloaddt1", copy.0 == t.0, "");
    let mut cfg = TileConfig::full();
    cfg.rows[2] = 5;
    cfg.colsb[4] = 12;
    let mut back = TileConfig {
        palette: 9,
        start_row: 9,
        reserved: [9; 14],
        colsb: [9; 16],
        rows: [9; 16],
    };
    unsafe {
        load_config(&cfg);
        asm!("sttilecfg [{0}]", in(reg) &mut back, options(nostack, preserves_flags));
        release();
    }
    r.line("sttilecfg", back == cfg, "");
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2")]
unsafe fn expand16_reg(mask: u32, src: *const u16, dst: *mut u16) {
    unsafe {
        let v = _mm512_loadu_si512(src.cast());
        // Through an empty asm block, so that the load is not joined to the expand.
        let mut w = v;
        asm!("/* {0} */", inout(zmm_reg) w, options(nostack, preserves_flags, nomem));
        _mm512_storeu_si512(dst.cast(), _mm512_maskz_expand_epi16(mask, w));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vbmi2")]
unsafe fn expand8_reg(mask: u64, src: *const u8, dst: *mut u8) {
    unsafe {
        let mut w = _mm512_loadu_si512(src.cast());
        asm!("/* {0} */", inout(zmm_reg) w, options(nostack, preserves_flags, nomem));
        _mm512_storeu_si512(dst.cast(), _mm512_maskz_expand_epi8(mask, w));
    }
}

unsafe fn expand16_mem(mask: u32, src: *const u16, dst: *mut u16) {
    unsafe {
        asm!("kmovd k1, {m:e}", "vpexpandw zmm0{{k1}}{{z}}, [{s}]", "vmovdqu64 [{d}], zmm0",
            m = in(reg) mask, s = in(reg) src, d = in(reg) dst,
            out("k1") _, out("zmm0") _, options(nostack, preserves_flags))
    }
}

unsafe fn expand8_mem(mask: u64, src: *const u8, dst: *mut u8) {
    unsafe {
        asm!("kmovq k1, {m}", "vpexpandb zmm0{{k1}}{{z}}, [{s}]", "vmovdqu64 [{d}], zmm0",
            m = in(reg) mask, s = in(reg) src, d = in(reg) dst,
            out("k1") _, out("zmm0") _, options(nostack, preserves_flags))
    }
}

unsafe fn expand32_mem(mask: u16, src: *const u32, dst: *mut u32) {
    unsafe {
        asm!("kmovw k1, {m:e}", "vpexpandd zmm0{{k1}}{{z}}, [{s}]", "vmovdqu64 [{d}], zmm0",
            m = in(reg) mask as u32, s = in(reg) src, d = in(reg) dst,
            out("k1") _, out("zmm0") _, options(nostack, preserves_flags))
    }
}

unsafe fn compress16(mask: u32, src: *const u16, dst: *mut u16) {
    unsafe {
        asm!("kmovd k1, {m:e}", "vmovdqu64 zmm0, [{s}]", "vpcompressw [{d}]{{k1}}, zmm0",
            m = in(reg) mask, s = in(reg) src, d = in(reg) dst,
            out("k1") _, out("zmm0") _, options(nostack, preserves_flags))
    }
}

unsafe fn compress8(mask: u64, src: *const u8, dst: *mut u8) {
    unsafe {
        asm!("kmovq k1, {m}", "vmovdqu64 zmm0, [{s}]", "vpcompressb zmm1{{k1}}{{z}}, zmm0", "vmovdqu64 [{d}], zmm1",
            m = in(reg) mask, s = in(reg) src, d = in(reg) dst,
            out("k1") _, out("zmm0") _, out("zmm1") _, options(nostack, preserves_flags))
    }
}

fn masks(rng: &mut Rng) -> Vec<u64> {
    let mut v = vec![
        0,
        1,
        !0,
        0xffff_ffff,
        1 << 31,
        1 << 63,
        0x5555_5555_5555_5555,
        !1,
    ];
    for _ in 0..300 {
        let (a, b) = (rng.next(), rng.next());
        v.extend([a, a & b, a | b]);
    }
    v
}

fn expand<T: Copy + Default>(mask: u64, src: &[T], lanes: usize) -> Vec<T> {
    let mut k = 0;
    (0..lanes)
        .map(|n| {
            if mask >> n & 1 == 1 {
                k += 1;
                src[k - 1]
            } else {
                T::default()
            }
        })
        .collect()
}

fn check_avx512(r: &mut Report, rng: &mut Rng) {
    let mut bytes = [0u8; 256];
    for x in bytes.iter_mut() {
        *x = rng.next() as u8 | 1;
    }
    let words: Vec<u16> = (0..64).map(|_| rng.next() as u16 | 1).collect();
    let dwords: Vec<u32> = (0..32).map(|_| rng.next() as u32 | 1).collect();
    let (mut e16r, mut e8r, mut e16m, mut e8m, mut e32m, mut c16, mut c8) = (0, 0, 0, 0, 0, 0, 0);
    let all = masks(rng);
    for &m in &all {
        let mut w = [0xffffu16; 32];
        let mut b = [0xffu8; 64];
        let mut d = [!0u32; 16];
        let (w_want, b_want, d_want) = (
            expand(m, &words, 32),
            expand(m, &bytes, 64),
            expand(m, &dwords, 16),
        );
        unsafe {
            expand16_reg(m as u32, words.as_ptr(), w.as_mut_ptr());
            e16r += (w[..] == w_want[..]) as usize;
            expand16_mem(m as u32, words.as_ptr(), w.as_mut_ptr());
            e16m += (w[..] == w_want[..]) as usize;
            expand8_reg(m, bytes.as_ptr(), b.as_mut_ptr());
            e8r += (b[..] == b_want[..]) as usize;
            expand8_mem(m, bytes.as_ptr(), b.as_mut_ptr());
            e8m += (b[..] == b_want[..]) as usize;
            expand32_mem(m as u16, dwords.as_ptr(), d.as_mut_ptr());
            e32m += (d[..] == d_want[..]) as usize;
        }
        let mut cw = [0xaaaau16; 32];
        let mut cb = [0u8; 64];
        unsafe {
            compress16(m as u32, words.as_ptr(), cw.as_mut_ptr());
            compress8(m, bytes.as_ptr(), cb.as_mut_ptr());
        }
        let mut want: Vec<u16> = (0..32)
            .filter(|n| m >> n & 1 == 1)
            .map(|n| words[n])
            .collect();
        want.resize(32, 0xaaaa);
        c16 += (cw[..] == want[..]) as usize;
        let mut want: Vec<u8> = (0..64)
            .filter(|n| m >> n & 1 == 1)
            .map(|n| bytes[n])
            .collect();
        want.resize(64, 0);
        c8 += (cb[..] == want[..]) as usize;
    }
    let n = all.len();
    let of = |k: usize| format!("{k} of {n} masks");
    r.line("vpexpandw from a register", e16r == n, &of(e16r));
    r.line("vpexpandb from a register", e8r == n, &of(e8r));
    r.line("vpexpandd from memory", e32m == n, &of(e32m));
    r.line("vpcompressw to memory", c16 == n, &of(c16));
    r.line("vpcompressb to a register", c8 == n, &of(c8));
    r.line("vpexpandw from memory", e16m == n, &of(e16m));
    r.line("vpexpandb from memory", e8m == n, &of(e8m));
    r.line(
        "expand and compress touch no byte past the last",
        unsafe { check_page_end(&words) },
        "",
    );
    r.line(
        "vdpbf16ps",
        unsafe { check_dpbf16(rng) },
        "within tolerance",
    );
    r.line("vpdpbusd", unsafe { check_dpbusd(rng) }, "exact");
    r.line("vpermb", unsafe { check_permb(&bytes) }, "exact");
}

unsafe fn syscall6(n: i64, a: [i64; 6]) -> i64 {
    let ret: i64;
    unsafe {
        asm!("syscall", inlateout("rax") n => ret, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], out("rcx") _, out("r11") _, options(nostack))
    }
    ret
}

/// A page followed by one that may not be touched: the last elements must be
/// reachable with a mask that has just as many bits set.
unsafe fn check_page_end(words: &[u16]) -> bool {
    let mut ok = true;
    unsafe {
        let map = syscall6(9, [0, 8192, 3, 0x22, -1, 0]);
        assert!(map > 0 && syscall6(10, [map + 4096, 4096, 0, 0, 0, 0]) == 0);
        let end = (map + 4096) as *mut u16;
        for count in 1..32 {
            let src = end.sub(count);
            std::ptr::copy_nonoverlapping(words.as_ptr(), src, count);
            let mask = u32::MAX << (32 - count);
            let mut w = [0xffffu16; 32];
            expand16_mem(mask, src, w.as_mut_ptr());
            ok &= w[..] == expand(mask as u64, words, 32)[..];
            let mut b = [0xffu8; 64];
            expand8_mem(
                (mask as u64) << 32,
                end.cast::<u8>().sub(count),
                b.as_mut_ptr(),
            );
            let tail = std::slice::from_raw_parts(end.cast::<u8>().sub(count), count);
            ok &= b[64 - count..] == tail[..] && b[..64 - count].iter().all(|&x| x == 0);
            compress16(mask, words.as_ptr(), src);
            ok &= std::slice::from_raw_parts(src, count) == &words[32 - count..32];
        }
    }
    ok
}

#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn check_dpbf16(rng: &mut Rng) -> bool {
    let mut ok = true;
    for _ in 0..100 {
        let (mut a, mut b) = ([0u16; 32], [0u16; 32]);
        for i in 0..32 {
            a[i] = rng.bf16();
            b[i] = rng.bf16();
        }
        let mut out = [0f32; 16];
        unsafe {
            let x: __m512bh = std::mem::transmute(a);
            let y: __m512bh = std::mem::transmute(b);
            _mm512_storeu_ps(
                out.as_mut_ptr(),
                _mm512_dpbf16_ps(_mm512_set1_ps(0.5), x, y),
            );
        }
        for n in 0..16 {
            let p = bf(a[2 * n]) as f64 * bf(b[2 * n]) as f64;
            let q = bf(a[2 * n + 1]) as f64 * bf(b[2 * n + 1]) as f64;
            ok &= (out[n] as f64 - (0.5 + p + q)).abs() <= (0.5 + p.abs() + q.abs()) * 1e-6;
        }
    }
    ok
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn check_dpbusd(rng: &mut Rng) -> bool {
    let mut ok = true;
    for _ in 0..100 {
        let (mut a, mut b) = (Tile::zero(), Tile::zero());
        rng.fill_bytes(&mut a);
        rng.fill_bytes(&mut b);
        let mut out = [0i32; 16];
        unsafe {
            let x = _mm512_loadu_si512(a.0.as_ptr().cast());
            let y = _mm512_loadu_si512(b.0.as_ptr().cast());
            _mm512_storeu_si512(
                out.as_mut_ptr().cast(),
                _mm512_dpbusd_epi32(_mm512_set1_epi32(7), x, y),
            );
        }
        for n in 0..16 {
            let s: i32 = (0..4)
                .map(|e| a.bytes()[4 * n + e] as i32 * b.bytes()[4 * n + e] as i8 as i32)
                .sum();
            ok &= out[n] == s + 7;
        }
    }
    ok
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn check_permb(bytes: &[u8; 256]) -> bool {
    let mut out = [0u8; 64];
    unsafe {
        let i = _mm512_loadu_si512(bytes.as_ptr().add(64).cast());
        let v = _mm512_loadu_si512(bytes.as_ptr().cast());
        _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_permutexvar_epi8(i, v));
    }
    (0..64).all(|n| out[n] == bytes[bytes[64 + n] as usize & 63])
}

/// Each thread keeps a tile with its own pattern, gives way many times, and
/// looks whether the tile and the configuration are still its own.
fn check_threads(r: &mut Report, threads: usize) {
    let bad = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|s| {
        for id in 0..threads {
            let (bad, done) = (&bad, &done);
            s.spawn(move || {
                let mut cfg = TileConfig::full();
                cfg.rows[6] = 3 + id as u8;
                let mut mine = Tile::zero();
                for (i, x) in mine.0.iter_mut().enumerate() {
                    *x = (id as u32 + 1) * 0x0101_0101 ^ i as u32;
                }
                unsafe {
                    load_config(&cfg);
                    asm!("tileloadd tmm7, [{p} + {s}*1]", p = in(reg) mine.0.as_ptr(), s = in(reg) 64usize,
                        options(nostack, preserves_flags));
                }
                let mut rng = Rng(id as u64 + 77);
                for round in 0..60 {
                    if round % 2 == 0 {
                        std::thread::yield_now();
                    } else {
                        let mut x = 0u64;
                        for _ in 0..200_000 {
                            x = std::hint::black_box(x.wrapping_add(1));
                        }
                    }
                    let (mut a, mut b, mut c) = (Tile::zero(), Tile::zero(), Tile::zero());
                    rng.fill_bytes(&mut a);
                    rng.fill_bytes(&mut b);
                    let mut want = c;
                    ref_int8(&mut want, &a, &b, true, true);
                    let mut out = Tile::zero();
                    let mut ones = [1u8; 1024];
                    unsafe {
                        tdpbssd(&mut c, &a, &b);
                        asm!("tilestored [{p} + {s}*1], tmm7", "tilezero tmm6", "tilestored [{o} + {s}*1], tmm6",
                            p = in(reg) out.0.as_mut_ptr(), s = in(reg) 64usize, o = in(reg) ones.as_mut_ptr(),
                            options(nostack, preserves_flags));
                    }
                    let rows = ones.iter().filter(|&&x| x == 0).count() / 64;
                    if out.0 != mine.0 || rows != cfg.rows[6] as usize || c.0 != want.0 {
                        bad.fetch_add(1, Ordering::Relaxed);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
                unsafe { release() };
            });
        }
    });
    let (bad, done) = (bad.into_inner(), done.into_inner());
    r.line(
        "tiles kept over thread switches",
        bad == 0 && done == 60 * threads,
        &format!(
            "{threads} threads, {done} rounds, {bad} wrong, {:.2} s",
            start.elapsed().as_secs_f64()
        ),
    );
}

fn bench() {
    let (a, b, mut c) = (Tile::zero(), Tile::zero(), Tile::zero());
    unsafe { load_config(&TileConfig::full()) };
    let n = 100_000u64;
    let t = Instant::now();
    unsafe {
        asm!("tilezero tmm0", "tileloadd tmm1, [{a} + {s}*1]", "tileloadd tmm2, [{b} + {s}*1]",
            "2:", "tdpbf16ps tmm0, tmm1, tmm2", "dec {n}", "jnz 2b",
            "tilestored [{c} + {s}*1], tmm0",
            a = in(reg) a.0.as_ptr(), b = in(reg) b.0.as_ptr(), c = in(reg) c.0.as_mut_ptr(),
            s = in(reg) 64usize, n = inout(reg) n => _, options(nostack));
        release();
    }
    println!(
        "bench {n} tdpbf16ps: {:.3} guest s",
        t.elapsed().as_secs_f64()
    );
    let n = 1_000_000u64;
    let words = [7u16; 64];
    let mut out = Tile::zero();
    let t = Instant::now();
    unsafe {
        asm!("2:", "kmovd k1, {m:e}", "vmovdqu64 zmm1, [{p}]", "vpexpandw zmm0{{k1}}{{z}}, zmm1", "vmovdqa64 [{o}], zmm0",
            "popcnt {x:e}, {m:e}", "add {m:e}, {x:e}", "dec {n}", "jnz 2b",
            p = in(reg) words.as_ptr(), o = in(reg) out.0.as_mut_ptr(), m = inout(reg) 0x1234_5678u32 => _,
            x = out(reg) _, n = inout(reg) n => _, out("k1") _, out("zmm0") _, out("zmm1") _, options(nostack));
    }
    println!(
        "bench {n} loops of 8 instructions with vpexpandw: {:.3} guest s",
        t.elapsed().as_secs_f64()
    );
    let n = 100_000_000u64;
    let t = Instant::now();
    unsafe {
        asm!("2:", "add {x}, {n}", "dec {n}", "jnz 2b", x = inout(reg) 0u64 => _, n = inout(reg) n => _, options(nostack));
    }
    println!(
        "bench {n} loops of 3 scalar instructions: {:.3} guest s",
        t.elapsed().as_secs_f64()
    );
}

fn has_amx() -> (bool, bool, bool) {
    let l0 = __cpuid(0);
    if l0.eax < 7 {
        return (false, false, false);
    }
    let d = __cpuid_count(7, 0).edx;
    (d >> 24 & 1 == 1, d >> 22 & 1 == 1, d >> 25 & 1 == 1)
}

/// Asks Linux for the tile state: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA).
fn ask_permission() -> i64 {
    let ret: i64;
    unsafe {
        asm!("syscall", inlateout("rax") 158i64 => ret, in("rdi") 0x1023, in("rsi") 18,
            out("rcx") _, out("r11") _, options(nostack))
    }
    ret
}

/// Linux must end a program that loads a tile without having asked for the tile
/// state. This program is started again to do so.
fn check_permission_needed(r: &mut Report) {
    const SIGILL: i32 = 4;
    let status = std::env::current_exe()
        .and_then(|me| std::process::Command::new(me).arg("unasked").status())
        .expect("start this program again");
    r.line(
        "tiles without permission end a program",
        status.signal() == Some(SIGILL),
        &status.to_string(),
    );
}

fn load_tile_unasked() {
    let t = Tile::zero();
    unsafe {
        load_config(&TileConfig::full());
        asm!("tileloadd tmm0, [{p} + {s}*1]", p = in(reg) t.0.as_ptr(), s = in(reg) 64usize,
            options(nostack, preserves_flags));
        release();
    }
}

fn show_cpu() {
    let l1d = __cpuid_count(0x1d, 1);
    let l1e = __cpuid_count(0x1e, 0);
    let d1 = __cpuid_count(0xd, 1);
    let (s17, s18) = (__cpuid_count(0xd, 17), __cpuid_count(0xd, 18));
    println!(
        "cpuid 7.0: ebx {:08x} ecx {:08x} edx {:08x}",
        __cpuid_count(7, 0).ebx,
        __cpuid_count(7, 0).ecx,
        __cpuid_count(7, 0).edx
    );
    println!(
        "cpuid 7.1: eax {:08x} edx {:08x}",
        __cpuid_count(7, 1).eax,
        __cpuid_count(7, 1).edx
    );
    println!(
        "cpuid d.1 eax {:08x}; d.17 size {} offset {}; d.18 size {} offset {}",
        d1.eax, s17.eax, s17.ebx, s18.eax, s18.ebx
    );
    println!(
        "cpuid 1d.1: tile bytes {} total {} bytes per row {} names {} rows {}",
        l1d.eax >> 16,
        l1d.eax & 0xffff,
        l1d.ebx & 0xffff,
        l1d.ebx >> 16,
        l1d.ecx
    );
    println!(
        "cpuid 1e.0: maxk {} maxn {}",
        l1e.ebx & 0xff,
        l1e.ebx >> 8 & 0xffff
    );
    let xcr0: u32;
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") xcr0, out("edx") _, options(nostack, nomem)) };
    println!("xcr0 {xcr0:x}");
    for f in [
        "avx512f",
        "avx512bw",
        "avx512vl",
        "avx512dq",
        "avx512vbmi",
        "avx512vbmi2",
        "avx512vnni",
        "avx512bf16",
    ] {
        let on = match f {
            "avx512f" => is_x86_feature_detected!("avx512f"),
            "avx512bw" => is_x86_feature_detected!("avx512bw"),
            "avx512vl" => is_x86_feature_detected!("avx512vl"),
            "avx512dq" => is_x86_feature_detected!("avx512dq"),
            "avx512vbmi" => is_x86_feature_detected!("avx512vbmi"),
            "avx512vbmi2" => is_x86_feature_detected!("avx512vbmi2"),
            "avx512vnni" => is_x86_feature_detected!("avx512vnni"),
            _ => is_x86_feature_detected!("avx512bf16"),
        };
        println!("{f} {on}");
    }
    if let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") {
        for line in text.lines().take_while(|l| !l.is_empty()) {
            if line.starts_with("model name") || line.starts_with("flags") {
                println!("{line}");
            }
        }
        println!(
            "cpus {}",
            text.lines().filter(|l| l.starts_with("processor")).count()
        );
    }
}

fn main() {
    let mut modes: Vec<String> = std::env::args().skip(1).collect();
    if modes.is_empty() {
        modes = vec!["cpuid".into(), "check".into(), "threads".into()];
    }
    let (tile, bf16, int8) = has_amx();
    println!("cpuid: amx-tile {tile} amx-bf16 {bf16} amx-int8 {int8}");
    if !(tile && bf16 && int8) {
        println!("no AMX on this CPU");
        std::process::exit(77);
    }
    if modes == ["unasked"] {
        load_tile_unasked();
        return;
    }
    println!(
        "arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA) = {}",
        ask_permission()
    );
    let mut r = Report { failed: 0 };
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    for m in &modes {
        match m.as_str() {
            "cpuid" => show_cpu(),
            "check" => {
                check_permission_needed(&mut r);
                check_shapes(&mut r, &mut rng);
                check_int8(&mut r, &mut rng);
                check_bf16(&mut r, &mut rng);
                check_avx512(&mut r, &mut rng);
            }
            "threads" => {
                check_threads(&mut r, 2);
                check_threads(&mut r, 5);
            }
            "bench" => bench(),
            other => panic!("unknown mode {other}"),
        }
    }
    println!("{} failed", r.failed);
    std::process::exit((r.failed != 0) as i32);
}
