//! Compute capabilities: which GPUs the kernels in this binary run on.

use std::fmt;
use std::str::FromStr;

/// What a GPU can do: 8.9 is `{ major: 8, minor: 9 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) major: u32,
    pub(super) minor: u32,
}

impl Capability {
    /// As `CUDA_COMPUTE_CAP` has it: 8.9 is `89`.
    pub(super) fn as_setting(self) -> String {
        format!("{}{}", self.major, self.minor)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Which GPUs machine code for one of them runs on too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Those of its major number that have its minor number or more: `sm_80`.
    Newer,
    /// The same, by NVIDIA's promise for a family: `sm_121f`.
    Family,
    /// None: `sm_90a` uses what only it has.
    Exact,
}

/// What the kernels in this binary were compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Built {
    capability: Capability,
    reach: Reach,
}

impl Built {
    /// Of the text of a kernel, the target that it names.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a CPU build has no kernels"))]
    pub(super) fn of_ptx(ptx: &str) -> Option<Self> {
        let target = ptx.lines().find_map(|line| line.trim().strip_prefix(".target"))?;
        target.split([',', ' ', '\t']).find(|word| !word.is_empty())?.parse().ok()
    }

    /// Whether all of the kernels run on a GPU that has this capability.
    ///
    /// Those for floating point are PTX, which newer GPUs translate unless it is for one kind alone;
    /// those for quantised weights are machine code, which is stricter. This asks for both.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "a CPU build has no kernels"))]
    pub(super) fn runs_on(self, gpu: Capability) -> bool {
        let Self { capability, reach } = self;
        match reach {
            Reach::Exact => gpu == capability,
            Reach::Newer | Reach::Family => {
                gpu.major == capability.major && gpu.minor >= capability.minor
            }
        }
    }
}

impl fmt::Display for Built {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.capability.fmt(f)
    }
}

impl FromStr for Built {
    type Err = ();

    /// The name of a target: `sm_86`, `sm_90a`, `sm_121f`.
    fn from_str(name: &str) -> Result<Self, ()> {
        let rest = name.strip_prefix("sm_").ok_or(())?;
        let (digits, reach) = match rest.strip_suffix(['a', 'f']) {
            None => (rest, Reach::Newer),
            Some(digits) if rest.ends_with('a') => (digits, Reach::Exact),
            Some(digits) => (digits, Reach::Family),
        };
        let number: u32 = digits.parse().map_err(|_| ())?;
        // The last digit is the minor number; nothing older than 2.0 was ever compiled for so.
        if number < 20 {
            return Err(());
        }
        let capability = Capability { major: number / 10, minor: number % 10 };
        Ok(Self { capability, reach })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_run_on_their_own_kind_and_on_what_follows_it() {
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
            let built: Built = built.parse().unwrap();
            assert_eq!(built.runs_on(capability), runs, "{built:?} on {capability}");
        }
    }

    #[test]
    fn names_of_targets_are_read_and_others_are_not() {
        let built: Built = "sm_103a".parse().unwrap();
        assert_eq!(built.to_string(), "10.3");
        for wrong in ["90", "sm_", "sm_a", "sm_9x", "compute_90", "sm_9", ""] {
            assert!(wrong.parse::<Built>().is_err(), "{wrong}");
        }
        assert_eq!(Capability { major: 12, minor: 0 }.as_setting(), "120");
    }

    #[test]
    fn the_target_is_found_in_the_text_of_a_kernel() {
        let ptx = "//\n// Generated\n//\n.version 9.0\n.target sm_90a\n.address_size 64\n";
        assert_eq!(Built::of_ptx(ptx), "sm_90a".parse().ok());
        assert_eq!(Built::of_ptx(".target\tsm_86, texmode_independent\n"), "sm_86".parse().ok());
        assert_eq!(Built::of_ptx(".version 9.0\n"), None);
    }
}
