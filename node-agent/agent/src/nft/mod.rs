//! stub for first compile
pub(crate) struct Table;
impl Default for Table { fn default() -> Self { Self } }
impl Table {
    pub(crate) fn converge(&mut self, _s: &crate::shared::Shared, _f: &crate::desired::Facts, _p: &crate::desired::Step) -> std::io::Result<()> { Ok(()) }
    pub(crate) fn remove(&mut self) -> std::io::Result<()> { Ok(()) }
}
