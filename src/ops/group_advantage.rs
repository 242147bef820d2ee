use crate::*;
#[derive(Clone, Debug)] pub struct GroupStats { pub std: f64, pub degenerate: bool }
#[derive(Clone, Copy, Debug)] pub struct GroupSettings;
pub struct GroupAdvantage<'a, R> { pub reward: View<'a,R>, pub offsets: View<'a,i64>, pub length: Option<View<'a,i64>>, pub settings: GroupSettings, pub advantage: ViewMut<'a,R>, pub groups: Option<&'a mut Vec<GroupStats>> }
pub fn group_advantage(_: &Device, mut a: GroupAdvantage<'_,f32>) -> Result<()> { let mut out=vec![]; for g in 0..a.offsets.extent(0)-1 { let (s,e)=(a.offsets.at(g) as usize,a.offsets.at(g+1) as usize); let r: Vec<f64>=(s..e).map(|i| a.reward.at(i) as f64).collect(); let n=r.len() as f64; let mu=r.iter().sum::<f64>()/n; let sd=(r.iter().map(|x|(x-mu)*(x-mu)).sum::<f64>()/(n-1.0)).sqrt(); let deg=r.iter().all(|x| *x==r[0]); for i in s..e { a.advantage.set(i, if deg {0.0} else {((r[i-s]-mu)/(sd+1e-4)) as f32}); } out.push(GroupStats{std:sd,degenerate:deg}); } if let Some(g)=a.groups { *g=out; } Ok(()) }
