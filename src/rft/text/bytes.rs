//! [`Bytes`]: UTF-8 as it is, for models of 256 ids without a tokenizer.

use crate::text::Codec;
use gradus::error::Result;

/// The id that ends sequences of a fresh model: no byte of UTF-8.
pub(crate) const END: i32 = 255;

/// One id a byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    stops: Vec<i32>,
}

impl Bytes {
    /// Bytes of which `stops` end a sequence.
    pub fn new(stops: &[i32]) -> Bytes {
        Bytes { stops: stops.to_vec() }
    }
}

impl Codec for Bytes {
    fn len(&self) -> usize {
        256
    }

    fn encode(&self, text: &str) -> Result<Vec<i32>> {
        Ok(text.bytes().map(i32::from).collect())
    }

    /// What is no UTF-8 becomes U+FFFD.
    fn decode(&self, ids: &[i32]) -> Result<String> {
        let text = ids.iter().take_while(|id| !self.stops.contains(id)).map(|&id| id as u8);
        Ok(String::from_utf8_lossy(&text.collect::<Vec<u8>>()).into_owned())
    }

    fn stops(&self) -> &[i32] {
        &self.stops
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back_up_to_the_stop() {
        let bytes = Bytes::new(&[2]);
        let mut ids = bytes.encode("3+4=ü").unwrap();
        assert_eq!(bytes.decode(&ids).unwrap(), "3+4=ü");
        ids.extend([2, 65]);
        assert_eq!(bytes.decode(&ids).unwrap(), "3+4=ü");
        assert_eq!(bytes.decode(&[0xff]).unwrap(), "\u{fffd}");
        let fresh = Bytes::new(&[END]);
        let every: String = (0..=char::MAX as u32).filter_map(char::from_u32).collect();
        assert!(!fresh.encode(&every).unwrap().contains(&END));
    }
}
