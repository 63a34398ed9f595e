//! Lists in pages: `limit` says how long a page is, `next` of the answer is the `cursor` of the one behind it.

use std::fmt::{self, Display};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::problem::{Kind, Problem};

/// Items of a page, unless the request says how many.
const USUAL: u16 = 100;
/// Most items of a page.
pub const MOST: u16 = 500;

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// The `cursor` of the next page; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// How long a page shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(u16);

impl Default for Limit {
    fn default() -> Limit {
        Limit(USUAL)
    }
}

impl Limit {
    /// As a number of items, 1 to 500.
    pub fn items(self) -> usize {
        self.0.into()
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Limit, D::Error> {
        match u16::deserialize(deserializer) {
            Ok(n @ 1..=MOST) => Ok(Limit(n)),
            _ => Err(serde::de::Error::custom(format_args!("it is a number from 1 to {MOST}"))),
        }
    }
}

/// A place in a list that is ordered by texts, as a cursor: hexadecimal, so that it needs no care in a URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub String);

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.bytes().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Place, ()> {
        let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(());
        let pairs = text.as_bytes().chunks_exact(2);
        if text.is_empty() || !pairs.remainder().is_empty() {
            return Err(());
        }
        let bytes: Result<Vec<u8>, ()> =
            pairs.map(|pair| Ok((digit(pair[0])? * 16 + digit(pair[1])?) as u8)).collect();
        String::from_utf8(bytes?).map(Place).map_err(drop)
    }
}

/// Reads a cursor that an earlier page gave.
///
/// # Errors
/// It is none of this list's.
pub fn cursor<C: FromStr>(text: Option<&str>) -> Result<Option<C>, Problem> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            let detail = "no cursor of this list: take it from `next` of the page before, unchanged";
            Problem::new(Kind::Malformed, format!("the parameter cursor: {detail}")).with("cursor", detail)
        })
    };
    text.map(parse).transpose()
}

impl<T> Page<T> {
    /// The page of `items`, which begin behind the cursor and of which there may be more than `limit`; `place`
    /// gives the cursor of an item.
    pub fn cut<C: Display>(
        items: impl IntoIterator<Item = T>,
        limit: Limit,
        place: impl Fn(&T) -> C,
    ) -> Page<T> {
        let mut items = items.into_iter();
        let page: Vec<T> = items.by_ref().take(limit.items()).collect();
        let more = items.next().is_some();
        let next = page.last().filter(|_| more).map(|last| place(last).to_string());
        Page { items: page, next }
    }

    /// The page with other items.
    pub fn map<U>(self, change: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(change).collect(), next: self.next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_until_the_list_ends() {
        let page = |after: Option<&str>| {
            let after = cursor::<u64>(after).unwrap().unwrap_or(0);
            Page::cut(after + 1..=7, Limit(3), |n| *n)
        };
        let first = page(None);
        let second = page(first.next.as_deref());
        let third = page(second.next.as_deref());
        assert_eq!((first.items, second.items, third.items), (vec![1, 2, 3], vec![4, 5, 6], vec![7]));
        assert_eq!(third.next, None);
        assert_eq!(Page::cut(1..=3, Limit(3), |n| *n).next, None, "a full last page has none behind it");
        assert_eq!(cursor::<u64>(Some("x")).unwrap_err().status, 400);
        let place = Place("zürich\0a".into());
        assert_eq!(cursor::<Place>(Some(&place.to_string())).unwrap(), Some(place));
        for wrong in ["", "4", "4x", "ü", "ff"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
