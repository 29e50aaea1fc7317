//! The numbers of Services.

use std::collections::HashSet;

/// Which numbers are in use. A number that was given back comes up again as late as
/// possible: clients may have been remembered with it.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    used: HashSet<u32>,
    /// The last that was taken.
    last: u32,
}

impl Numbers {
    /// Takes one that is not in use, from 1 up.
    pub(super) fn take(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && self.used.insert(self.last) {
                return self.last;
            }
        }
    }

    /// Gives one back.
    pub(super) fn give_back(&mut self, number: u32) {
        self.used.remove(&number);
    }

    /// Gives all back.
    pub(super) fn give_back_all(&mut self) {
        self.used.clear();
    }
}

impl FromIterator<u32> for Numbers {
    fn from_iter<I: IntoIterator<Item = u32>>(numbers: I) -> Self {
        let used: HashSet<u32> = numbers.into_iter().collect();
        let last = used.iter().copied().max().unwrap_or(0);
        Self { used, last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_1_and_none_is_given_twice() {
        let mut numbers = Numbers::default();
        assert_eq!([(); 3].map(|()| numbers.take()), [1, 2, 3]);
        numbers.give_back(2);
        assert_eq!(numbers.take(), 4, "others go first");
        let mut last: Numbers = [2, u32::MAX].into_iter().collect();
        assert_eq!([(); 3].map(|()| last.take()), [1, 3, 4]);
    }
}
