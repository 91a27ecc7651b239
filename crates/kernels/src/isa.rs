//! Instruction sets, and the detection of those that the CPU has.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// A set of kernels, named after the instructions that it needs; ordered from the slowest to the
/// fastest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Plain Rust for any CPU; on aarch64 the compiler vectorises it with NEON.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// AVX2 with 8-bit dot products (AVX-VNNI).
    Avx2Vnni,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with 8-bit dot products, but none of bf16: Cascade Lake, Ice Lake, Tiger Lake.
    Avx512Int8,
    /// AVX-512 with 8-bit and bf16 dot products.
    Avx512Vnni,
    /// AVX-512 as above, and matrix tiles of 8-bit integers and bf16.
    Amx,
}

/// Proof that this CPU has the instructions of a tier: only [`Tier::isa`] makes one.
///
/// Every function of this crate that uses vector instructions asks for it, so that none can be called
/// on a CPU without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Tier);

/// How wide the row kernels (norms, quantisation, softmax) are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorWidth {
    /// Plain loops, which the compiler may vectorise.
    Portable,
    /// 256 bits, with AVX2 and FMA.
    Avx2,
    /// 512 bits, with AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Isa {
    /// Plain Rust, which runs on every CPU.
    pub const PORTABLE: Self = Self(Tier::Portable);

    /// The fastest tier that this CPU and its operating system support.
    #[must_use]
    pub fn best() -> Self {
        Self(Tier::best())
    }

    /// The tiers that this CPU and its operating system support, the slowest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Tier::available().iter().map(|&tier| Self(tier))
    }

    /// The tier whose instructions these are.
    #[must_use]
    pub const fn tier(self) -> Tier {
        self.0
    }

    pub(crate) const fn width(self) -> VectorWidth {
        match self.0 {
            Tier::Portable => VectorWidth::Portable,
            Tier::Avx2 | Tier::Avx2Vnni => VectorWidth::Avx2,
            Tier::Avx512 | Tier::Avx512Int8 | Tier::Avx512Vnni | Tier::Amx => VectorWidth::Avx512,
        }
    }
}

impl Tier {
    /// Every tier, the slowest first.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx2Vnni,
        Self::Avx512,
        Self::Avx512Int8,
        Self::Avx512Vnni,
        Self::Amx,
    ];

    /// The fastest tier that this CPU and its operating system support.
    #[must_use]
    pub fn best() -> Self {
        *Self::available().last().unwrap_or(&Self::Portable)
    }

    /// The tiers that this CPU and its operating system support, the slowest first.
    #[must_use]
    pub fn available() -> &'static [Self] {
        static FOUND: OnceLock<Vec<Tier>> = OnceLock::new();
        FOUND.get_or_init(|| Self::ALL.into_iter().filter(|tier| tier.runs_here()).collect())
    }

    /// Whether this CPU and its operating system support it.
    #[must_use]
    pub fn is_available(self) -> bool {
        Self::available().contains(&self)
    }

    #[cfg(target_arch = "x86_64")]
    fn runs_here(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Self::Portable => true,
            Self::Avx2 => has!("avx2") && has!("fma"),
            Self::Avx2Vnni => Self::Avx2.runs_here() && has!("avxvnni"),
            Self::Avx512 => {
                Self::Avx2.runs_here()
                    && has!("avx512f")
                    && has!("avx512bw")
                    && has!("avx512dq")
                    && has!("avx512vl")
            }
            Self::Avx512Int8 => Self::Avx512.runs_here() && has!("avx512vnni"),
            Self::Avx512Vnni => Self::Avx512Int8.runs_here() && has!("avx512bf16"),
            Self::Amx => Self::Avx512Vnni.runs_here() && super::microkernels::amx::permitted(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn runs_here(self) -> bool {
        self == Self::Portable
    }

    /// The proof that its instructions exist; `None` if the CPU or the operating system lacks them.
    #[must_use]
    pub fn isa(self) -> Option<Isa> {
        self.is_available().then_some(Isa(self))
    }

    /// Whether it has instructions for products of bf16; other tiers compute these in f32.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self >= Self::Avx512Vnni
    }

    /// The name in `CPU_KERNELS` and in `/model/info`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx2Vnni => "avx2-vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Int8 => "avx512-int8",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Amx => "amx",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Tier {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|tier| tier.as_str() == text).ok_or(())
    }
}

/// Compiles one function for every [`VectorWidth`], and calls the one that an [`Isa`] allows.
///
/// The body is `#[inline(always)]` and takes a constant that says whether fused multiply-add is an
/// instruction. Inlined into a function that may use more instructions, it is compiled with them.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments, reason = "kernels take slices, not structs")]
        $vis fn $name(isa: $crate::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::isa::VectorWidth;
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "as above")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match isa.width() {
                    // SAFETY: an `Isa` of this width exists only where the CPU has the features.
                    VectorWidth::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: an `Isa` of this width exists only where the CPU has the features.
                    VectorWidth::Avx2 => return unsafe { avx2($($arg),*) },
                    VectorWidth::Portable => {}
                }
            }
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}
pub(crate) use for_each_isa;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_the_portable_tier_always_runs() {
        for tier in Tier::ALL {
            assert_eq!(tier.as_str().parse(), Ok(tier));
        }
        assert_eq!("sse9".parse::<Tier>(), Err(()));
        assert_eq!(Tier::available().first(), Some(&Tier::Portable));
        assert!(Tier::best().is_available());
    }

    #[test]
    fn only_available_tiers_have_an_isa() {
        for tier in Tier::ALL {
            assert_eq!(tier.isa().map(Isa::tier), tier.is_available().then_some(tier));
        }
        assert_eq!(Isa::available().last(), Some(Isa::best()));
    }
}
