//! Pieces that wait to be written, in their order.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BytesMut};

/// The first `N` pieces, or as many as there are, for one call.
pub(crate) struct Slices<'a, const N: usize> {
    slices: [IoSlice<'a>; N],
    filled: usize,
}

impl<'a, const N: usize> Slices<'a, N> {
    /// Those of a queue.
    pub(crate) fn of(pieces: &'a VecDeque<BytesMut>) -> Slices<'a, N> {
        let mut slices = [IoSlice::new(&[]); N];
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
        }
        Slices { slices, filled: pieces.len().min(N) }
    }
}

impl<'a, const N: usize> std::ops::Deref for Slices<'a, N> {
    type Target = [IoSlice<'a>];

    fn deref(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.filled]
    }
}

/// Takes the first `n` bytes off.
pub(crate) fn advance(pieces: &mut VecDeque<BytesMut>, mut n: usize) {
    while n > 0 {
        let Some(front) = pieces.front_mut() else { return };
        let taken = n.min(front.len());
        front.advance(taken);
        n -= taken;
        if front.is_empty() {
            pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_there_are_and_no_more_than_fit() {
        let mut pieces: VecDeque<BytesMut> = [&b"one"[..], b"two", b"three"].map(BytesMut::from).into();
        let seen = |pieces: &VecDeque<BytesMut>| {
            Slices::<2>::of(pieces).iter().map(|slice| slice.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(seen(&pieces), [b"one", b"two"]);
        advance(&mut pieces, 4);
        assert_eq!(seen(&pieces), [&b"wo"[..], b"three"]);
        advance(&mut pieces, 2);
        assert_eq!(seen(&pieces), [b"three"]);
        advance(&mut pieces, 5);
        assert!(pieces.is_empty() && Slices::<2>::of(&pieces).is_empty());
    }
}
