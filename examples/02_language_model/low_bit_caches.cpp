// SPDX-License-Identifier: Apache-2.0
#include "measure.hpp"

void example::add_low_bit_caches(std::vector<plan>& plans) { for_each_low_bit_cache(plan_list{plans}); }
