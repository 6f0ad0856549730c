// SPDX-License-Identifier: Apache-2.0
//! `send`: raw Ethernet frames, as a hostile workload would send them.

use weft_probe::frames::{FrameSender, Offload};

use crate::arguments::Arguments;

pub(crate) fn run(arguments: &mut Arguments) -> Result<(), String> {
    let iface = arguments.required("IFACE")?;
    let frame = parse_hex(&arguments.required("HEX")?)?;
    let count: usize = arguments.option("--count")?.unwrap_or(1);
    let offload = arguments.option::<String>("--offload")?.map(|text| parse_offload(&text)).transpose()?;
    arguments.finish()?;
    let sender = match offload {
        None => FrameSender::open(&iface),
        Some(_) => FrameSender::with_offloads(&iface),
    };
    let sender = sender.map_err(|error| format!("{iface}: {error}"))?;
    for _ in 0..count {
        sender.send(&frame, offload.unwrap_or_default()).map_err(|error| format!("{iface}: {error}"))?;
    }
    Ok(())
}

fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !b": ".contains(byte)).collect();
    digits
        .chunks(2)
        .map(|pair| {
            let pair = std::str::from_utf8(pair).map_err(|_| "the frame is not hexadecimal")?;
            u8::from_str_radix(pair, 16).map_err(|_| format!("'{pair}' is not a hexadecimal byte"))
        })
        .collect()
}

/// Six numbers with commas: the fields of [`Offload`] in their order.
fn parse_offload(text: &str) -> Result<Offload, String> {
    let fields: Result<Vec<u16>, _> = text.split(',').map(str::parse).collect();
    let fields = fields.map_err(|_| format!("'{text}' is not a list of numbers"))?;
    let [flags, segmentation, header_len, segment_len, checksum_start, checksum_offset] =
        <[u16; 6]>::try_from(fields).map_err(|_| format!("'{text}' has not six numbers"))?;
    let byte = |field: u16| u8::try_from(field).map_err(|_| format!("{field} is no byte"));
    let (flags, segmentation) = (byte(flags)?, byte(segmentation)?);
    Ok(Offload { flags, segmentation, header_len, segment_len, checksum_start, checksum_offset })
}

#[cfg(test)]
mod tests {
    use super::{Offload, parse_hex, parse_offload};

    #[test]
    fn hexadecimal_with_and_without_separators() {
        assert_eq!(parse_hex("02:00 ff").unwrap(), [2, 0, 255]);
        assert_eq!(parse_hex("0200ff").unwrap(), [2, 0, 255]);
        assert!(parse_hex("0g").is_err());
    }

    #[test]
    fn an_offload_is_six_numbers() {
        assert_eq!(parse_offload("1,0,0,0,34,6").unwrap(), Offload::checksum(34, 6));
        assert!(parse_offload("1,0").is_err());
        assert!(parse_offload("256,0,0,0,34,6").is_err());
    }
}
