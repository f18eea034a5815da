//! Where HTTP/1 requests begin and end, as a suspicious reader sees it.
//!
//! hyper reads requests, and where RFC 9112 lets a server guess, it guesses by the book: of `Transfer-Encoding` and
//! `Content-Length` it drops the second. Whoever stands before us may have guessed otherwise, and what is the body for
//! one is the next request for the other. This reads along, and names the first request that can be read in two ways,
//! so that it is refused and the connection ends. Invariant: up to that request it sees the same boundaries as hyper.

/// How much of one line of a head is looked at; longer ones are cut, for all that is decided here is short.
const LINE: usize = 256;

/// Follows a connection's bytes.
#[derive(Debug, Default)]
pub(crate) struct Framing {
    place: Place,
    line: Vec<u8>,
    /// The current head's.
    head: Head,
    /// Heads that are complete.
    heads: u32,
}

#[derive(Debug, Default)]
struct Head {
    lines: u32,
    length: Option<u64>,
    chunked: bool,
    old: bool,
    suspect: bool,
    last_was_return: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[default]
    Head,
    /// This much of a body is to come.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailers,
}

impl Framing {
    /// Takes what came. Gives the number of the request that can be read in two ways, if there is one; then the rest is
    /// not looked at.
    pub(crate) fn follow(&mut self, mut bytes: &[u8]) -> Option<u32> {
        while !bytes.is_empty() {
            match self.place {
                Place::Body(left) | Place::Chunk(left) if left > 0 => {
                    let step = left.min(bytes.len() as u64);
                    bytes = &bytes[step as usize..];
                    let left = left - step;
                    self.place = match self.place {
                        Place::Body(_) if left == 0 => Place::Head,
                        Place::Body(_) => Place::Body(left),
                        // The line end after the chunk is read as a line.
                        _ => Place::Chunk(left),
                    };
                }
                _ => {
                    let end = bytes.iter().position(|b| *b == b'\n');
                    let upto = end.unwrap_or(bytes.len());
                    if upto > 0 {
                        self.head.last_was_return = bytes[upto - 1] == b'\r';
                    }
                    let suspect = if end.is_some() && self.line.is_empty() {
                        // As a rule all of it is here.
                        self.line_ends(&bytes[..upto.min(LINE)], upto < LINE)
                    } else {
                        let room = LINE.saturating_sub(self.line.len());
                        self.line.extend_from_slice(&bytes[..upto.min(room)]);
                        end.is_some() && {
                            let line = std::mem::take(&mut self.line);
                            self.line_ends(&line, line.len() < LINE)
                        }
                    };
                    if suspect {
                        return Some(self.heads + u32::from(self.place == Place::Head));
                    }
                    bytes = &bytes[end.map_or(bytes.len(), |end| end + 1)..];
                }
            }
        }
        None
    }

    /// A line is complete (without its line feed). True if the request cannot be relied on.
    fn line_ends(&mut self, line: &[u8], whole: bool) -> bool {
        let returned = std::mem::take(&mut self.head.last_was_return);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.place {
            Place::Head => {
                if line.is_empty() && self.head.lines == 0 {
                    return false; // line ends before a request are skipped by everybody
                }
                if line.is_empty() && whole {
                    return self.head_ends();
                }
                self.head.suspect |= !returned;
                self.field(line);
                self.head.lines += 1;
                // The head is told of when it ends, which is when hyper does.
                false
            }
            Place::ChunkSize => {
                let size = line.split(|b| *b == b';').next().unwrap_or_default();
                let digits = size.trim_ascii_end();
                let parsed = str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                match parsed.filter(|_| digits.iter().all(u8::is_ascii_hexdigit)) {
                    Some(0) => self.place = Place::Trailers,
                    Some(size) => self.place = Place::Chunk(size),
                    None => return true,
                }
                // A bare line feed in an extension is where some see the end of the line and some do not.
                !returned
            }
            Place::Chunk(_) => {
                self.place = Place::ChunkSize;
                !line.is_empty()
            }
            Place::Trailers => {
                if line.is_empty() && whole {
                    self.place = Place::Head;
                }
                false
            }
            Place::Body(_) => {
                self.place = Place::Head;
                false
            }
        }
    }

    fn field(&mut self, line: &[u8]) {
        let head = &mut self.head;
        if head.lines == 0 {
            head.old = line.ends_with(b"HTTP/1.0");
            return;
        }
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let length = str::from_utf8(value).ok().and_then(|text| text.parse().ok()).filter(|_| digits);
            // Twice is once too often, even if both say the same.
            head.suspect |= length.is_none() || head.length.is_some();
            head.length = length;
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            head.suspect |= head.chunked || !value.eq_ignore_ascii_case(b"chunked");
            head.chunked = true;
        }
    }

    fn head_ends(&mut self) -> bool {
        let head = std::mem::take(&mut self.head);
        if head.suspect || (head.chunked && (head.length.is_some() || head.old)) {
            return true;
        }
        self.heads += 1;
        self.place = match (head.chunked, head.length) {
            (true, _) => Place::ChunkSize,
            (false, Some(length)) if length > 0 => Place::Body(length),
            _ => Place::Head,
        };
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suspect(text: &str) -> Option<u32> {
        let whole = Framing::default().follow(text.as_bytes());
        let mut framing = Framing::default();
        let single = text.bytes().find_map(|byte| framing.follow(&[byte]));
        assert_eq!(whole, single, "cut differently: {text:?}");
        whole
    }

    #[test]
    fn ordinary_requests_are_not_suspected() {
        for text in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /GET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1c\r\nContent-Length: 1\r\nTransfer-\r\n0\r\nX: y\r\n\r\n",
            "\r\nGET / HTTP/1.0\r\nContent-Length: 0\r\n\r\n",
        ] {
            assert_eq!(suspect(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_named() {
        let ok = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for text in [
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\ncontent-length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
        ] {
            assert_eq!(suspect(text), Some(1), "{text:?}");
            assert_eq!(suspect(&format!("{ok}{text}")), Some(2), "{text:?}");
        }
        let chunks = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for rest in ["0x5\r\n", "5;a\nb\r\n", "-1\r\n", "5\r\nhelloX\r\n"] {
            assert_eq!(suspect(&format!("{chunks}{rest}")), Some(1), "{rest:?}");
        }
    }
}
