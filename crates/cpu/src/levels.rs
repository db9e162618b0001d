//! What each level consists of: the one place where the feature lists stand.

/// Defines a level: the list that detection checks, and the exported macro that puts the same list into a
/// `target_feature` attribute. A function cannot do this, because an attribute takes only literals. `$d` is a dollar
/// sign, which the inner macro needs and the outer one could not write otherwise.
macro_rules! level {
    ($d:tt $list:ident, $(#[$doc:meta])* $attribute:ident, [$($feature:tt),+]) => {
        pub(crate) const $list: &[&str] = &[$($feature),+];

        $(#[$doc])*
        #[macro_export]
        macro_rules! $attribute {
            ($d($d item:item)*) => { $d( #[target_feature($(enable = $feature),+)] $d item )* };
        }
    };
    ($d:tt $list:ident, $(#[$doc:meta])* $attribute:ident over $base:ident, [$($feature:tt),+]) => {
        pub(crate) const $list: &[&str] = &[$($feature),+];

        $(#[$doc])*
        #[macro_export]
        macro_rules! $attribute {
            ($d($d item:item)*) => {
                $crate::$base! { $d( #[target_feature($(enable = $feature),+)] $d item )* }
            };
        }
    };
}

level! {
    $ AVX2,
    /// Compiles the functions in it for [`Isa::Avx2`](crate::Isa::Avx2). Safe to call from functions of the same or a
    /// higher level; from anywhere else the caller holds an [`Avx2`](crate::Avx2) token. Written with round brackets,
    /// `avx2_fns!( .. );`, `rustfmt` formats the contents.
    avx2_fns, ["avx2", "fma", "f16c", "bmi1", "bmi2", "lzcnt", "popcnt"]
}

level! {
    $ AVX512,
    /// Compiles the functions in it for [`Isa::Avx512`](crate::Isa::Avx512); like [`avx2_fns!`](crate::avx2_fns).
    avx512_fns over avx2_fns,
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd", "avx512vbmi", "avx512vbmi2"]
}

level! {
    $ AVX512_BF16,
    /// [`avx512_fns!`](crate::avx512_fns) with [`Features::AVX512_BF16`](crate::Features::AVX512_BF16).
    avx512_bf16_fns over avx512_fns, ["avx512bf16"]
}

level! {
    $ AVX512_VNNI,
    /// [`avx512_fns!`](crate::avx512_fns) with [`Features::AVX512_VNNI`](crate::Features::AVX512_VNNI).
    avx512_vnni_fns over avx512_fns, ["avx512vnni"]
}

/// Tiles are used through inline assembly, which needs no attribute, so these have no macro.
pub(crate) const AMX_BF16: &[&str] = &["amx-tile", "amx-bf16"];
pub(crate) const AMX_INT8: &[&str] = &["amx-int8"];
