// SPDX-License-Identifier: Apache-2.0
// Packed weights are measured with these caches, so they are compiled with them.
#include "measure.hpp"

void example::add_plain_caches(std::vector<plan>& plans) { for_each_plain_cache(plan_list{plans}); }
void example::add_packed_models(std::vector<plan>& plans) { for_each_packed_model(plan_list{plans}); }
