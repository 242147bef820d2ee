//! [`Bytes`]: UTF-8 as it is, for models of 256 ids without a tokenizer.

use crate::text::Codec;
use gradus::error::Result;

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
    }
}
