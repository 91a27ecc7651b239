//! Compute capabilities: which GPUs the kernels in this binary run on.

use std::fmt;
use std::str::FromStr;

/// The compute capability of a GPU: 8.9 is `{ major: 8, minor: 9 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Capability {
    /// The value of `CUDA_COMPUTE_CAP`: 8.9 is `89`.
    pub(super) fn as_setting(self) -> String {
        format!("{}{}", self.major, self.minor)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Which other GPUs can run the machine code for one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compatibility {
    /// Those with the same major number and the same or a greater minor number: `sm_80`.
    Newer,
    /// The same, promised by NVIDIA for a family: `sm_121f`.
    Family,
    /// None: `sm_90a` uses features that only it has.
    Exact,
}

/// The target that the kernels in this binary were compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BuildTarget {
    capability: Capability,
    compatibility: Compatibility,
}

impl BuildTarget {
    /// The target that the PTX text of a kernel names.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a CPU build has no kernels"))]
    pub(super) fn of_ptx(ptx: &str) -> Option<Self> {
        let target = ptx.lines().find_map(|line| line.trim().strip_prefix(".target"))?;
        target.split([',', ' ', '\t']).find(|word| !word.is_empty())?.parse().ok()
    }

    /// Whether all kernels run on a GPU of this capability.
    ///
    /// The kernels for floating point are PTX, which newer GPUs translate unless it is for a single
    /// capability. Those for quantised weights are machine code, which is stricter. Both must run.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a CPU build has no kernels"))]
    pub(super) fn runs_on(self, gpu: Capability) -> bool {
        let Self { capability, compatibility } = self;
        match compatibility {
            Compatibility::Exact => gpu == capability,
            Compatibility::Newer | Compatibility::Family => {
                gpu.major == capability.major && gpu.minor >= capability.minor
            }
        }
    }
}

impl fmt::Display for BuildTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.capability.fmt(f)
    }
}

impl FromStr for BuildTarget {
    type Err = ();

    /// The name of a target: `sm_86`, `sm_90a`, `sm_121f`.
    fn from_str(name: &str) -> Result<Self, ()> {
        let rest = name.strip_prefix("sm_").ok_or(())?;
        let (digits, compatibility) = match rest.strip_suffix(['a', 'f']) {
            None => (rest, Compatibility::Newer),
            Some(digits) if rest.ends_with('a') => (digits, Compatibility::Exact),
            Some(digits) => (digits, Compatibility::Family),
        };
        let number: u32 = digits.parse().map_err(|_| ())?;
        // The last digit is the minor number; targets older than 2.0 had other names.
        if number < 20 {
            return Err(());
        }
        let capability = Capability { major: number / 10, minor: number % 10 };
        Ok(Self { capability, compatibility })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_run_on_their_own_capability_and_on_compatible_ones() {
        for (built, gpu, runs) in [
            ("sm_80", (8, 0), true),
            ("sm_80", (8, 6), true),
            ("sm_80", (8, 9), true),
            ("sm_80", (7, 5), false),
            ("sm_80", (9, 0), false),
            ("sm_86", (8, 0), false),
            ("sm_89", (8, 9), true),
            ("sm_89", (8, 6), false),
            ("sm_90a", (9, 0), true),
            ("sm_90a", (8, 9), false),
            ("sm_90a", (10, 0), false),
            ("sm_100a", (10, 0), true),
            ("sm_100a", (10, 3), false),
            ("sm_120a", (12, 0), true),
            ("sm_120a", (12, 1), false),
            ("sm_121f", (12, 1), true),
            ("sm_121f", (12, 0), false),
        ] {
            let capability = Capability { major: gpu.0, minor: gpu.1 };
            let built: BuildTarget = built.parse().unwrap();
            assert_eq!(built.runs_on(capability), runs, "{built:?} on {capability}");
        }
    }

    #[test]
    fn names_of_targets_are_parsed_and_others_refused() {
        let built: BuildTarget = "sm_103a".parse().unwrap();
        assert_eq!(built.to_string(), "10.3");
        for wrong in ["90", "sm_", "sm_a", "sm_9x", "compute_90", "sm_9", ""] {
            assert!(wrong.parse::<BuildTarget>().is_err(), "{wrong}");
        }
        assert_eq!(Capability { major: 12, minor: 0 }.as_setting(), "120");
    }

    #[test]
    fn the_target_is_found_in_the_text_of_a_kernel() {
        let ptx = "//\n// Generated\n//\n.version 9.0\n.target sm_90a\n.address_size 64\n";
        assert_eq!(BuildTarget::of_ptx(ptx), "sm_90a".parse().ok());
        assert_eq!(
            BuildTarget::of_ptx(".target\tsm_86, texmode_independent\n"),
            "sm_86".parse().ok()
        );
        assert_eq!(BuildTarget::of_ptx(".version 9.0\n"), None);
    }
}
