// SPDX-License-Identifier: Apache-2.0

//! The oracle's own rules, each from the text of the API.

use super::*;
