// SPDX-License-Identifier: Apache-2.0

//! Rounds, and what is made of them.
//!
//! A path and its baseline are measured right after one another, so that what else the machine does falls on both, and they take
//! turns in who goes first, so that what a run leaves behind does too. Only values of one round are divided by each other: medians
//! of runs that vary by half say nothing about two paths that differ by a tenth.

use anyhow::Result;

/// Rounds of a benchmark that compares: quartiles have six on either side of the median.
pub(crate) const ROUNDS: usize = 25;

/// What was measured of a path in one round, and of its baseline in the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Pair<T> {
    /// The path's.
    pub(crate) value: T,
    /// Its baseline's.
    pub(crate) baseline: T,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    /// What the path is compared with.
    Baseline,
    /// The path.
    Path,
}

/// Measures both sides: the baseline first in odd rounds, the path first in even ones.
///
/// # Errors
/// Those of `measure`.
pub(crate) fn in_turn<T>(round: usize, mut measure: impl FnMut(Side) -> Result<T>) -> Result<Pair<T>> {
    if round.is_multiple_of(2) {
        let value = measure(Side::Path)?;
        return Ok(Pair { value, baseline: measure(Side::Baseline)? });
    }
    let baseline = measure(Side::Baseline)?;
    Ok(Pair { value: measure(Side::Path)?, baseline })
}

/// The middle of some values, and what a quarter and three quarters of them do not exceed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Quartiles {
    pub(crate) first: f64,
    pub(crate) median: f64,
    pub(crate) third: f64,
}

impl Quartiles {
    /// Of `values`, linear between two neighbours; NaN where there is none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
            let (index, rest) = (last * quarters / 4, (last * quarters % 4) as f64 / 4.0);
            let below = sorted[index];
            // Not the one above where the value is hit: infinity times zero is no number.
            if rest == 0.0 { below } else { below + (sorted[index + 1] - below) * rest }
        };
        Self { first: at(1), median: at(2), third: at(3) }
    }

    /// Of the ratio that each round has by itself.
    pub(crate) fn of_ratios(rounds: &[Pair<f64>]) -> Self {
        Self::of(rounds.iter().map(|round| part(round.value, round.baseline)))
    }
}

/// `value / whole`, 0 where there is no whole: JSON has no infinity.
pub(crate) fn part(value: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { value / whole }
}

#[cfg(test)]
mod tests {
    use super::{Pair, Quartiles, Side, in_turn};

    fn rounds(values: &[(f64, f64)]) -> Vec<Pair<f64>> {
        values.iter().map(|&(value, baseline)| Pair { value, baseline }).collect()
    }

    #[test]
    fn quartiles_are_linear_between_neighbours() {
        let of = |values: &[f64]| {
            let Quartiles { first, median, third } = Quartiles::of(values.iter().copied());
            [first, median, third]
        };
        assert_eq!(of(&[3.0, 1.0, 2.0, 5.0, 4.0]), [2.0, 3.0, 4.0]);
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), [1.75, 2.5, 3.25]);
        assert_eq!(of(&[7.0]), [7.0; 3]);
        assert!(of(&[]).iter().all(|value| value.is_nan()));
        // Twenty-five rounds: the 7th, the 13th and the 19th.
        assert_eq!(of(&(1..=25).rev().map(f64::from).collect::<Vec<_>>()), [7.0, 13.0, 19.0]);
    }

    /// Nanoseconds of one machine, quiet and loud by turns: in every round the path takes 1.3 to 1.5 times the baseline, but for
    /// the third, in which the noise came between the two.
    #[test]
    fn a_ratio_is_the_median_of_ratios_and_not_the_quotient_of_medians() {
        let measured = rounds(&[(44.0, 31.0), (45.0, 30.0), (46.0, 900.0), (1_300.0, 910.0), (1_290.0, 905.0)]);
        let Quartiles { first, median, third } = Quartiles::of_ratios(&measured);
        let expected = [44.0 / 31.0, 1_290.0 / 905.0, 1_300.0 / 910.0];
        assert!([first, median, third].iter().zip(expected).all(|(is, want)| (is - want).abs() < 1e-9));
        let value = Quartiles::of(measured.iter().map(|round| round.value)).median;
        let beside = Quartiles::of(measured.iter().map(|round| round.baseline)).median;
        assert_eq!((value, beside), (46.0, 900.0), "as if the path beat its baseline by far");
    }

    #[test]
    fn who_goes_first_alternates() {
        let mut order = Vec::new();
        for round in 1..=2 {
            let pair = in_turn(round, |side| {
                order.push(side);
                Ok(side)
            });
            assert_eq!(pair.unwrap(), Pair { value: Side::Path, baseline: Side::Baseline });
        }
        assert_eq!(order, [Side::Baseline, Side::Path, Side::Path, Side::Baseline]);
    }
}
