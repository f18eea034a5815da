//! What a unit may use at most, by its own limits: `MemoryMax=` and `CPUQuota=`, systemd.resource-control(5).
//!
//! Responsible for reading the two settings as systemd does. Not responsible for what a machine has left, nor for
//! the limits themselves: systemd enforces those. Invariant: a setting that systemd would ignore counts as none.
//! A unit without a limit counts as nothing: it has promised nothing, so there is nothing to add up, and the
//! number of units still spreads such units over machines.

use crate::UnitFile;
use model::UnitName;

/// Limits of a unit. The default is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// `MemoryMax=`, or its old name `MemoryLimit=`.
    pub memory: Option<Memory>,
    /// `CPUQuota=` in thousandths of one processor.
    pub cpu: Option<u32>,
}

/// A limit on memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// So many bytes.
    Bytes(u64),
    /// So many ten-thousandths of the machine's memory.
    Share(u32),
}

impl Resources {
    /// What `file` says in the section of its type.
    pub fn of(name: &UnitName, file: &UnitFile) -> Self {
        let section = match name.kind() {
            "service" => "Service",
            "socket" => "Socket",
            "mount" => "Mount",
            "swap" => "Swap",
            "slice" => "Slice",
            "scope" => "Scope",
            _ => return Self::default(),
        };
        let limit = file.last(section, "MemoryMax").or_else(|| file.last(section, "MemoryLimit"));
        Self { memory: limit.and_then(memory), cpu: file.last(section, "CPUQuota").and_then(cpu) }
    }

    /// Bytes of memory on a machine that has `memory` of them.
    pub fn memory_of(&self, memory: u64) -> u64 {
        match self.memory {
            None => 0,
            Some(Memory::Bytes(bytes)) => bytes,
            Some(Memory::Share(share)) => {
                u64::try_from(u128::from(memory) * u128::from(share) / 10_000).unwrap_or(u64::MAX)
            }
        }
    }
}

/// Bytes with `K`, `M`, `G`, `T`, `P`, `E` to the base 1024, or a percentage; `infinity` is no limit.
fn memory(text: &str) -> Option<Memory> {
    if let Some(percent) = text.strip_suffix('%') {
        return hundredths(percent).map(Memory::Share);
    }
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let unit = unit.trim().strip_suffix('B').unwrap_or_else(|| unit.trim());
    let power = ["", "K", "M", "G", "T", "P", "E"].iter().position(|known| *known == unit)?;
    let scale = 1_u64 << (10 * power);
    match number.split_once('.') {
        None => number.parse::<u64>().ok()?.checked_mul(scale).map(Memory::Bytes),
        Some((whole, fraction)) => {
            let digits = fraction.get(..fraction.len().min(6))?;
            let parts = u128::from(digits.parse::<u64>().ok()?) * u128::from(scale);
            let parts = u64::try_from(parts / 10_u128.pow(u32::try_from(digits.len()).ok()?)).ok()?;
            whole.parse::<u64>().ok()?.checked_mul(scale)?.checked_add(parts).map(Memory::Bytes)
        }
    }
}

/// A percentage of one processor, as thousandths of one.
fn cpu(text: &str) -> Option<u32> {
    hundredths(text.strip_suffix('%')?).map(|hundredths| hundredths / 10).filter(|cpu| *cpu > 0)
}

/// `12.5` → 1250.
fn hundredths(text: &str) -> Option<u32> {
    let text = text.trim();
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let fraction = match fraction.len() {
        1 => fraction.parse::<u32>().ok()? * 10,
        2 => fraction.parse().ok()?,
        _ => return None,
    };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Resources {
        let file = UnitFile::parse(&format!("[Service]\nExecStart=/a\n{lines}\n")).expect(lines);
        Resources::of(&"a.service".parse().expect("a unit name"), &file)
    }

    #[test]
    fn limits_are_read_as_systemd_reads_them() {
        for (text, bytes) in [("1024", 1024), ("2K", 2048), ("1.5G", 3 << 29), ("512M", 512 << 20)] {
            assert_eq!(read(&format!("MemoryMax={text}")).memory, Some(Memory::Bytes(bytes)), "{text}");
        }
        assert_eq!(read("MemoryMax=12.5%").memory_of(1000), 125);
        assert_eq!(read("MemoryLimit=1M").memory_of(0), 1 << 20);
        assert_eq!(read("MemoryMax=1M\nMemoryMax=").memory, None, "an empty value takes it back");
        for (text, cpu) in [("20%", 200), ("150%", 1500), ("12.5%", 125)] {
            assert_eq!(read(&format!("CPUQuota={text}")).cpu, Some(cpu), "{text}");
        }
        for text in
            ["MemoryMax=infinity", "MemoryMax=lots", "CPUQuota=2", "CPUQuota=0%", "MemoryMax=99999999E"]
        {
            assert_eq!(read(text), Resources::default(), "{text}");
        }
    }
}
