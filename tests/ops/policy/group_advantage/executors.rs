//! Advantages of many groups that share the spread of the batch.

use std::sync::Arc;

use crate::common::devices::traffic;
use crate::policy::sequences::Packed;
use gradus::Device;
use gradus::device::{EmuDriver, Gpu, KernelSet};
use gradus::ops::*;

#[test]
fn the_spread_of_a_batch_takes_one_launch() {
    for set in [KernelSet::Sm80, KernelSet::Sm90a] {
        let driver = Arc::new(EmuDriver::new());
        let gpu = Gpu::new(driver.clone()).unwrap().with_kernel_set(set).unwrap();
        let device = Device::Gpu(Arc::new(gpu));
        let packed = Packed::<f32>::new(&[16_384; 4], |_| true);
        let n = packed.reward.len();
        let mut advantage = packed.nan();
        let args = GroupAdvantage {
            reward: (&packed.reward).into(),
            offsets: (&packed.cu_seqlens).into(),
            length: None,
            settings: GroupSettings { scale: GroupScale::BatchStd, ..GroupSettings::default() },
            advantage: (&mut advantage).into(),
            groups: None,
        };
        group_advantage(&device, args).unwrap();
        assert_eq!(traffic(&driver, n).0, 1, "group_advantage");
    }
}
