// SPDX-License-Identifier: Apache-2.0
//! The requests of a front end, by number.

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// Requests a front end may send.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Request {
            $($(#[$doc])* $name = $number,)+
        }

        impl Request {
            /// The request with this number, if the protocol has one.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

requests! {
    /// `VHOST_USER_GET_FEATURES`
    GetFeatures = 1,
    /// `VHOST_USER_SET_FEATURES`
    SetFeatures = 2,
    /// `VHOST_USER_SET_OWNER`
    SetOwner = 3,
    /// `VHOST_USER_RESET_OWNER` (deprecated)
    ResetOwner = 4,
    /// `VHOST_USER_SET_MEM_TABLE`
    SetMemTable = 5,
    /// `VHOST_USER_SET_LOG_BASE`
    SetLogBase = 6,
    /// `VHOST_USER_SET_LOG_FD`
    SetLogFd = 7,
    /// `VHOST_USER_SET_VRING_NUM`
    SetVringNum = 8,
    /// `VHOST_USER_SET_VRING_ADDR`
    SetVringAddr = 9,
    /// `VHOST_USER_SET_VRING_BASE`
    SetVringBase = 10,
    /// `VHOST_USER_GET_VRING_BASE`
    GetVringBase = 11,
    /// `VHOST_USER_SET_VRING_KICK`
    SetVringKick = 12,
    /// `VHOST_USER_SET_VRING_CALL`
    SetVringCall = 13,
    /// `VHOST_USER_SET_VRING_ERR`
    SetVringErr = 14,
    /// `VHOST_USER_GET_PROTOCOL_FEATURES`
    GetProtocolFeatures = 15,
    /// `VHOST_USER_SET_PROTOCOL_FEATURES`
    SetProtocolFeatures = 16,
    /// `VHOST_USER_GET_QUEUE_NUM`
    GetQueueNum = 17,
    /// `VHOST_USER_SET_VRING_ENABLE`
    SetVringEnable = 18,
    /// `VHOST_USER_SEND_RARP`
    SendRarp = 19,
    /// `VHOST_USER_NET_SET_MTU`
    NetSetMtu = 20,
    /// `VHOST_USER_GET_CONFIG`
    GetConfig = 24,
    /// `VHOST_USER_SET_CONFIG`
    SetConfig = 25,
    /// `VHOST_USER_RESET_DEVICE`
    ResetDevice = 34,
    /// `VHOST_USER_GET_MAX_MEM_SLOTS`
    GetMaxMemSlots = 36,
    /// `VHOST_USER_ADD_MEM_REG`
    AddMemRegion = 37,
    /// `VHOST_USER_REM_MEM_REG`
    RemoveMemRegion = 38,
}

impl Request {
    /// Whether the request is answered by more than an acknowledgement.
    pub fn has_own_reply(self) -> bool {
        matches!(
            self,
            Self::GetFeatures
                | Self::GetProtocolFeatures
                | Self::GetQueueNum
                | Self::GetMaxMemSlots
                | Self::GetVringBase
                | Self::GetConfig
                | Self::SetLogBase
        )
    }
}
