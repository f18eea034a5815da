//! Pages of a list, and the tokens that name them: four bytes in base64's URL alphabet, the limit and the page's
//! number, each 16 bits with the low byte first. Invariant: following tokens gives every item once, as long as the
//! list does not change meanwhile. (fleet gave a page that was exactly full a token to an empty one; this does not.)

use crate::types::ApiError;
use base64::{
    DecodeError, Engine,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// fleet's `token_limit` where nobody changed it; a token made with another one is refused.
const LIMIT: u16 = 100;
/// As Go's `base64.URLEncoding`: padded, and easy about unused bits.
const ENGINE: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// A page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    /// Counted from 1.
    number: u16,
}

impl Page {
    /// The page that a query asks for: the first, unless it has a `nextPageToken`.
    pub(super) fn of(query: &[(String, String)]) -> Result<Self, ApiError> {
        let mut tokens = query.iter().filter(|(name, _)| name == "nextPageToken").map(|(_, value)| value);
        match (tokens.next(), tokens.next()) {
            (None, _) => Ok(Self { number: 1 }),
            (Some(token), None) => Self::decode(token),
            (Some(_), Some(_)) => Err(ApiError::bad_request("too many values for page token")),
        }
    }

    fn decode(token: &str) -> Result<Self, ApiError> {
        let bytes = ENGINE.decode(token).map_err(|error| {
            let place = match error {
                DecodeError::InvalidByte(place, _) | DecodeError::InvalidLastSymbol(place, _) => place,
                DecodeError::InvalidLength(length) => length / 4 * 4,
                DecodeError::InvalidPadding => token.len(),
            };
            ApiError::bad_request(format!("illegal base64 data at input byte {place}"))
        })?;
        let [a, b, c, d] = bytes[..] else {
            return Err(ApiError::bad_request(format!(
                "nextPageToken must hold 4 bytes, not {}",
                bytes.len()
            )));
        };
        let (limit, number) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        if limit != LIMIT {
            return Err(ApiError::bad_request(format!("token limit must be {LIMIT}")));
        }
        if number == 0 {
            return Err(ApiError::bad_request("token page must be greater than zero"));
        }
        Ok(Self { number })
    }

    fn encode(self) -> String {
        let ([a, b], [c, d]) = (LIMIT.to_le_bytes(), self.number.to_le_bytes());
        ENGINE.encode([a, b, c, d])
    }

    /// The items on this page, and the token of the next one if there is any.
    pub(super) fn cut<T>(self, items: Vec<T>) -> (Vec<T>, Option<String>) {
        let limit = usize::from(LIMIT);
        let start = (usize::from(self.number) - 1) * limit;
        let more = items.len() > start + limit;
        let next = self.number.checked_add(1).filter(|_| more).map(|number| Self { number }.encode());
        (items.into_iter().skip(start).take(limit).collect(), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(tokens: &[&str]) -> Result<Page, String> {
        let query: Vec<_> =
            tokens.iter().map(|token| ("nextPageToken".to_owned(), (*token).to_owned())).collect();
        Page::of(&query).map_err(|error| error.message)
    }

    #[test]
    fn tokens_are_fleets() {
        assert_eq!(Page { number: 2 }.encode(), "ZAACAA==");
        assert_eq!(of(&["ZAACAA=="]), Ok(Page { number: 2 }));
        assert_eq!(of(&[]), Ok(Page { number: 1 }));
        for (tokens, message) in [
            (&["*"][..], "illegal base64 data at input byte 0"),
            (&["EwBMLg=="], "token limit must be 100"),
            (&["ZAAAAA=="], "token page must be greater than zero"),
            (&["ZAACAA==", "ZAACAA=="], "too many values for page token"),
            (&[""], "nextPageToken must hold 4 bytes, not 0"),
            (&["ZAACAAAA"], "nextPageToken must hold 4 bytes, not 6"),
            (&["ZAACAA"], "illegal base64 data at input byte 6"),
        ] {
            assert_eq!(of(tokens), Err(message.to_owned()), "{tokens:?}");
        }
    }

    #[test]
    fn pages_give_every_item_once() {
        for total in [0, 1, 99, 100, 101, 200, 250] {
            let (mut page, mut seen) = (Page { number: 1 }, Vec::new());
            loop {
                let (items, next) = page.cut((0..total).collect());
                seen.extend(items);
                match next {
                    Some(token) => page = of(&[&token]).expect("our own token"),
                    None => break,
                }
            }
            assert_eq!(seen, (0..total).collect::<Vec<_>>());
        }
        assert_eq!(Page { number: 9 }.cut(vec![1]), (vec![], None));
    }

    proptest! {
        #[test]
        fn no_token_is_too_wild(token in any::<String>()) {
            let _ = of(&[&token]);
        }

        #[test]
        fn what_is_accepted_is_a_page(bytes in prop::array::uniform4(any::<u8>())) {
            if let Ok(page) = of(&[&ENGINE.encode(bytes)]) {
                prop_assert_eq!(&page.encode(), &ENGINE.encode(bytes));
            }
        }
    }
}
