// A strict stand-in for CUDA in a CPU build of torch: its tensors lie on cuda:0, in memory of their own that the CPU can read.
// Every operator goes through `fallback`, which refuses what CUDA refuses, runs the CPU's kernel on aliases of the same memory,
// and hands back device tensors. It counts operators (about: kernel launches), and what the host has to wait for.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>
#include <torch/library.h>
#include <set>

namespace {
using at::Tensor;
const c10::Device DEVICE(c10::DeviceType::CUDA, 0);
std::mutex counting;
std::map<std::string, int64_t>*operators = new std::map<std::string, int64_t>, *waits = new std::map<std::string, int64_t>;
std::atomic<int64_t> allocated{0};

void count(std::map<std::string, int64_t>* table, const std::string& name) {
  std::lock_guard<std::mutex> guard(counting);
  (*table)[name]++;
}

// ---- memory

struct Block {
  int64_t bytes;
  void* memory;
  Tensor owner;  // the kernel's result whose memory a device tensor has taken over
};
void free_block(void* context) {
  auto* block = static_cast<Block*>(context);
  allocated -= block->bytes;
  free(block->memory);
  delete block;
}
struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? aligned_alloc(64, (bytes + 63) / 64 * 64) : nullptr;
    if (bytes) memset(memory, 0xCB, bytes);  // new memory holds garbage, never lucky zeros
    allocated += bytes;
    return {memory, new Block{(int64_t)bytes, memory, {}}, &free_block, DEVICE};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { memcpy(to, from, bytes); }
};
DeviceAllocator* device_allocator = new DeviceAllocator;

// ---- random numbers of its own; the state is 16 bytes, as CUDA's is

struct DeviceGenerator final : c10::GeneratorImpl {
  uint64_t state[2] = {c10::default_rng_seed_val, 0};  // seed and offset
  DeviceGenerator() : GeneratorImpl(DEVICE, c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { state[0] = seed, state[1] = 0; }
  void set_offset(uint64_t offset) override { state[1] = offset; }
  uint64_t get_offset() const override { return state[1]; }
  uint64_t current_seed() const override { return state[0]; }
  uint64_t seed() override { return set_current_seed(c10::detail::getNonDeterministicRandom()), state[0]; }
  void set_state(const c10::TensorImpl& given) override {
    TORCH_CHECK(given.device().is_cpu() && given.numel() == sizeof(state), "RNG state is wrong size");
    memcpy(state, given.data(), sizeof(state));
  }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto found = at::empty({sizeof(state)}, at::kByte);
    memcpy(found.mutable_data_ptr(), state, sizeof(state));
    return found.getIntrusivePtr();
  }
  DeviceGenerator* clone_impl() const override { return new DeviceGenerator(*this); }
  DeviceGenerator(const DeviceGenerator& other) : DeviceGenerator() { memcpy(state, other.state, sizeof(state)); }
  at::Generator next() { return at::detail::createCPUGenerator(state[0] + 0x9E3779B97F4A7C15ull * ++state[1]); }
};
const at::Generator& default_generator() {
  static auto* generator = new at::Generator(at::make_generator<DeviceGenerator>());
  return *generator;
}
at::Generator next_of(const at::Generator& g) { return static_cast<DeviceGenerator*>(g.unsafeGetGeneratorImpl())->next(); }

// ---- what torch asks of a device

struct Hooks : at::CUDAHooksInterface {
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex = -1) const override { return at::make_generator<DeviceGenerator>(); }
  c10::Device getDeviceFromPtr(void*) const override { return DEVICE; }
  at::Allocator* getCUDADeviceAllocator() const override { return device_allocator; }
};
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Device check(c10::Device device) {
    TORCH_CHECK(device.index() <= 0, "CUDA error: invalid device ordinal");
    return DEVICE;
  }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override { return check(device); }
  c10::Device getDevice() const override { return DEVICE; }
  void setDevice(c10::Device device) const override { check(device); }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override { *event = event; }
  void block(void*, const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override { count(waits, "synchronize"); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// ---- device tensors and their aliases on the CPU

bool on_device(const Tensor& t) { return t.defined() && t.device().is_cuda(); }

Tensor make(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_storage_offset(like.storage_offset());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides());
  return made;
}
Tensor host_view(const Tensor& t) {
  if (t.numel() == 0) {  // a kernel may make room in it
    auto made = at::empty({0}, at::TensorOptions().dtype(t.dtype()));
    made.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
    return made;
  }
  c10::DataPtr memory(const_cast<void*>(t.storage().data()), c10::Device(c10::kCPU));
  auto made = make(c10::Storage({}, t.storage().nbytes(), std::move(memory), nullptr, false), c10::DispatchKey::CPU, t);
  if (t.is_conj()) made._set_conj(true);
  if (t.is_neg()) made._set_neg(true);
  return made;
}
struct Call {
  std::vector<std::pair<Tensor, Tensor>> pairs;  // device tensors among the arguments, and their aliases
  Tensor to_cpu(const Tensor& t) {
    if (!on_device(t)) return t;
    for (auto& [device, cpu] : pairs)
      if (device.is_same(t)) return cpu;
    return pairs.emplace_back(t, host_view(t)).second;
  }
  Tensor to_device(const Tensor& t) {
    if (!t.defined() || !t.device().is_cpu()) return t;
    for (auto& [device, cpu] : pairs)
      if (cpu.is_same(t)) return device;
    for (auto& [device, cpu] : pairs)
      if (t.storage().data() && t.storage().data() == device.storage().data())
        return make(device.storage(), c10::DispatchKey::CUDA, t);
    int64_t bytes = t.storage().nbytes();
    allocated += bytes;
    c10::DataPtr memory(const_cast<void*>(t.storage().data()), new Block{bytes, nullptr, t.alias()}, &free_block, DEVICE);
    auto made = make(c10::Storage({}, bytes, std::move(memory), device_allocator, true), c10::DispatchKey::CUDA, t);
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) made.unsafeGetTensorImpl()->set_wrapped_number(true);
    return made;
  }
  void take_over_resized() {
    for (auto& [device, cpu] : pairs) {
      if (cpu.numel() && cpu.storage().data() != device.storage().data())
        device.unsafeGetTensorImpl()->set_storage_keep_dtype(Call().to_device(cpu.alias()).storage());
      if (cpu.sizes() != device.sizes() || cpu.strides() != device.strides())
        device.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides(), cpu.storage_offset());
    }
  }
};

template <class Change>
c10::IValue mapped(const c10::IValue& value, Change change) {
  if (value.isTensor()) return value.toTensor().defined() ? c10::IValue(change(value.toTensor())) : value;
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(change(t));
    return list;
  }
  if (!value.isOptionalTensorList()) return value;
  c10::List<std::optional<Tensor>> list;
  for (std::optional<Tensor> t : value.toOptionalTensorList()) list.push_back(t ? std::optional<Tensor>(change(*t)) : t);
  return list;
}

// ---- operators

const std::set<std::string> READS_SIZE = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
                                          "aten::unique_consecutive", "aten::equal", "aten::repeat_interleave.Tensor",
                                          "aten::bincount", "aten::histc"};

void check_devices(const c10::OperatorHandle& op, const std::string& name, c10::ArrayRef<c10::IValue> given) {
  bool device = false, host = false;
  for (size_t i = 0; i < given.size(); ++i) {
    const auto& argument = op.schema().arguments()[i];
    const bool index = name.find("index") != std::string::npos && argument.name() == "indices";
    const bool written = argument.alias_info() && argument.alias_info()->isWrite();
    if (given[i].isDevice()) device |= given[i].toDevice().is_cuda();
    mapped(given[i], [&](const Tensor& t) {
      if (index && on_device(t) && t.scalar_type() == at::kBool) count(waits, name + " with a mask");
      if (index && !on_device(t)) count(waits, name + " with indices of the CPU");
      device |= on_device(t);
      host |= t.device().is_cpu() && !index && (t.dim() > 0 || written);
      return t;
    });
  }
  TORCH_CHECK(device && !host, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (",
              name, ")");
}

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto begin = stack->size() - schema.arguments().size();
  const auto name = schema.name() + (schema.overload_name().empty() ? "" : "." + schema.overload_name());
  check_devices(op, name, c10::ArrayRef<c10::IValue>(stack->data() + begin, schema.arguments().size()));
  Call call;
  bool has_generator = false;
  for (size_t i = begin; i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    value = mapped(value, [&](const Tensor& t) { return call.to_cpu(t); });
    if (value.isDevice() && value.toDevice().is_cuda()) value = c10::Device(c10::kCPU);
    if (schema.arguments()[i - begin].type()->str().find("Generator") == std::string::npos) continue;
    has_generator = true;
    const auto generator = value.isGenerator() ? value.toGenerator() : default_generator();
    TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found 'cpu'");
    value = next_of(generator);
  }
  count(operators, name);
  if (READS_SIZE.count(name)) count(waits, name);
  auto cpu_generator = at::detail::getDefaultCPUGenerator();
  const auto before = cpu_generator.get_state();
  const bool draws = !has_generator && op.hasTag(at::Tag::nondeterministic_seeded);  // dropout
  if (draws) cpu_generator.set_state(next_of(default_generator()).get_state());
  {
    at::AutoDispatchBelowADInplaceOrView below;
    c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  if (draws) cpu_generator.set_state(before);
  call.take_over_resized();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i)
    (*stack)[i] = mapped((*stack)[i], [&](const Tensor& t) { return call.to_device(t); });
}

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  if (device) Guard::check(*device);
  return at::detail::empty_generic(size, device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                   dtype.value_or(c10::get_default_dtype_as_scalartype()), format);
}
Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, device_allocator, c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           dtype.value_or(c10::get_default_dtype_as_scalartype()));
}
Tensor view_like(const Tensor& self, const Tensor& shape) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(self.storage()), self.key_set(),
                                                       self.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(shape.sizes(), shape.strides(), shape.storage_offset());
  return made;
}
Tensor strided(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
  return view_like(self, host_view(self).as_strided(size, stride, offset));
}
Tensor reshape_alias(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return strided(self, size, stride, std::nullopt);
}
Tensor view(const Tensor& self, c10::IntArrayRef size) { return view_like(self, host_view(self).view(size)); }
Tensor unfold(const Tensor& self, int64_t dim, int64_t size, int64_t step) {
  return view_like(self, host_view(self).unfold(dim, size, step));
}
const Tensor& resize_(const Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const size_t bytes = (impl->storage_offset() + impl->numel()) * impl->itemsize();
  if (bytes > self.storage().nbytes()) {
    auto memory = device_allocator->allocate(bytes);
    memcpy(memory.get(), self.storage().data(), self.storage().nbytes());
    self.storage().set_data_ptr(std::move(memory));
    self.storage().set_nbytes(bytes);
  }
  return self;
}
Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  TORCH_CHECK(storage.device().is_cuda(), "Attempted to set the storage of a tensor on device cuda:0 to one on cpu");
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}
Tensor& set_whole_storage(Tensor& self, at::Storage storage) {
  const int64_t length = storage.nbytes() / self.itemsize();
  return set_storage(self, std::move(storage), 0, {length}, {1});
}
Tensor& set_tensor(Tensor& self, const Tensor& other) {
  return set_storage(self, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}
at::Scalar local_scalar(const Tensor& self) {
  count(waits, "aten::_local_scalar_dense");
  return host_view(self).item();
}
Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  if (!on_device(self)) count(waits, "copy to the CPU");
  if (!on_device(source) && !non_blocking) count(waits, "copy to the device");
  if (on_device(self) && on_device(source)) count(operators, "aten::copy_");
  at::AutoDispatchBelowADInplaceOrView below;
  Tensor to = on_device(self) ? host_view(self) : self;
  to.copy_(on_device(source) ? host_view(source) : source);
  return self;
}
}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &strided);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("view", &view);
  m.impl("unfold", &unfold);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Tensor", &set_tensor);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("copy_", &copy_);
  // torch has composite kernels for these, which a fallback does not replace
  for (auto* name : {"convolution", "convolution_backward", "_efficientzerotensor", "native_layer_norm", "native_group_norm"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  // `import torch` keeps the hooks of a build without CUDA: give that object the functions of ours.
  static auto* hooks = new Hooks;
  auto* known = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(known) = *reinterpret_cast<void**>(hooks);
  m.def("default_generator", [] { return default_generator(); });
  m.def("allocated", [] { return allocated.load(); });
  m.def("operators", [] { return *operators; });
  m.def("waits", [] { return *waits; });
  m.def("reset", [] { operators->clear(), waits->clear(); });
}
