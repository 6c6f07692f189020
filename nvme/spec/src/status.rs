//! Status of a command (Base 2.0, section 4.5: Status field; figures 97 to 102).

/// Status code type, status code and the "do not retry" bit of a completion.
///
/// `dnr` tells the host that the same command would fail again; leave it off for causes that pass
/// (busy, shutting down, aborted), or a multipath host gives up instead of trying again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Status {
    /// Status code type, 3 bits.
    pub code_type: u8,
    /// Status code.
    pub code: u8,
    /// Do Not Retry.
    pub dnr: bool,
}

const fn passing(code_type: u8, code: u8) -> Status {
    Status { code_type, code, dnr: false }
}

const fn lasting(code_type: u8, code: u8) -> Status {
    Status { code_type, code, dnr: true }
}

impl Status {
    /// The command succeeded.
    pub const SUCCESS: Self = passing(0, 0x00);
    /// The opcode is not supported.
    pub const INVALID_OPCODE: Self = lasting(0, 0x01);
    /// A field of the command is invalid.
    pub const INVALID_FIELD: Self = lasting(0, 0x02);
    /// The command identifier is already in use.
    pub const CID_CONFLICT: Self = lasting(0, 0x03);
    /// Data could not be transferred.
    pub const DATA_TRANSFER_ERROR: Self = passing(0, 0x04);
    /// Something failed inside the controller.
    pub const INTERNAL_ERROR: Self = passing(0, 0x06);
    /// The host asked for the command to be aborted.
    pub const ABORTED_BY_REQUEST: Self = passing(0, 0x07);
    /// The command was aborted because its queue went away.
    pub const ABORTED_SQ_DELETION: Self = passing(0, 0x08);
    /// The namespace, or the format of that namespace, is invalid.
    pub const INVALID_NAMESPACE: Self = lasting(0, 0x0b);
    /// The command is not allowed in this order.
    pub const COMMAND_SEQUENCE_ERROR: Self = lasting(0, 0x0c);
    /// The length of the data SGL is too short or too long.
    pub const DATA_SGL_LENGTH_INVALID: Self = lasting(0, 0x0f);
    /// The type of an SGL descriptor is not supported.
    pub const SGL_TYPE_INVALID: Self = lasting(0, 0x11);
    /// The offset of an in-capsule SGL is invalid.
    pub const SGL_OFFSET_INVALID: Self = lasting(0, 0x16);
    /// The host identifier is inconsistent.
    pub const HOST_ID_INCONSISTENT: Self = lasting(0, 0x18);
    /// The keep alive timeout is invalid.
    pub const KEEP_ALIVE_INVALID: Self = lasting(0, 0x1a);
    /// The namespace is write protected.
    pub const NAMESPACE_WRITE_PROTECTED: Self = lasting(0, 0x20);
    /// The transport failed in passing (TCP: a data digest did not match).
    pub const TRANSIENT_TRANSPORT_ERROR: Self = passing(0, 0x22);
    /// The LBA range exceeds the size of the namespace.
    pub const LBA_OUT_OF_RANGE: Self = lasting(0, 0x80);
    /// The namespace has no room left for the write.
    pub const CAPACITY_EXCEEDED: Self = lasting(0, 0x81);
    /// The namespace cannot be accessed for now.
    pub const NAMESPACE_NOT_READY: Self = passing(0, 0x82);

    /// More asynchronous event requests than the controller's limit.
    pub const AER_LIMIT_EXCEEDED: Self = lasting(1, 0x05);
    /// The log page is not supported or its parameters are wrong.
    pub const INVALID_LOG_PAGE: Self = lasting(1, 0x09);
    /// The feature cannot be saved.
    pub const FEATURE_NOT_SAVEABLE: Self = lasting(1, 0x0d);
    /// The feature cannot be changed.
    pub const FEATURE_NOT_CHANGEABLE: Self = lasting(1, 0x0e);
    /// More commands to abort than the limit.
    pub const ABORT_LIMIT_EXCEEDED: Self = passing(1, 0x03);
    /// Writing to what is read-only.
    pub const READ_ONLY_RANGE: Self = lasting(1, 0x82);
    /// The range of a command, or the sum of its ranges, is over a limit.
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Self = lasting(1, 0x83);

    /// Connect: the record format is not supported (Base 2.0, section 6.3).
    pub const CONNECT_INCOMPATIBLE_FORMAT: Self = lasting(1, 0x80);
    /// Connect: no controller can be had for now.
    pub const CONNECT_CONTROLLER_BUSY: Self = passing(1, 0x81);
    /// Connect: a parameter is invalid; the completion says which.
    pub const CONNECT_INVALID_PARAMETERS: Self = lasting(1, 0x82);
    /// Connect: this host is not allowed.
    pub const CONNECT_INVALID_HOST: Self = lasting(1, 0x84);

    /// The medium could not be written.
    pub const WRITE_FAULT: Self = passing(2, 0x80);
    /// Data could not be read, or did not match its checksum.
    pub const UNRECOVERED_READ_ERROR: Self = lasting(2, 0x81);

    /// A path-related passing failure inside the controller.
    pub const INTERNAL_PATH_ERROR: Self = passing(3, 0x00);

    /// The bits of the CQE's status field (phase tag 0).
    #[must_use]
    pub const fn to_bits(self) -> u16 {
        ((self.code as u16) << 1) | ((self.code_type as u16) << 9) | ((self.dnr as u16) << 15)
    }

    /// The status that a CQE's status field tells.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self {
            code_type: ((bits >> 9) & 7) as u8,
            code: ((bits >> 1) & 0xff) as u8,
            dnr: bits >> 15 != 0,
        }
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code_type == 0 && self.code == 0
    }

    /// The same status with "do not retry" set.
    #[must_use]
    pub const fn do_not_retry(self) -> Self {
        Self { dnr: true, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_round_trip() {
        for bits in (0..=u16::MAX).filter(|bits| bits & 0x7001 == 0) {
            assert_eq!(Status::from_bits(bits).to_bits(), bits);
        }
        // Invalid Namespace or Format, DNR: the value that Linux prints as 0x400b, shifted by the phase.
        assert_eq!(Status::INVALID_NAMESPACE.to_bits(), 0x8016);
    }
}
